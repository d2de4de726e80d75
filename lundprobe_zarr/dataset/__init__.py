"""A converted dataset: manifest, tables, objects, content hashes and identity.

Imports `stores` and below.
Start reading at dataset.py.
"""
