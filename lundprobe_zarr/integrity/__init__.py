"""Whether a dataset is whole and sound, and copies that are proved to be.

Imports `dataset` and below.
Start reading at validate.py.
"""
