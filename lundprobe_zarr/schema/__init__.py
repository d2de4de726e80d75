"""What a converted dataset looks like: groups, arrays, types, chunks, tables, manifest.

Pure. Imports `geometry` and below.
Start reading at layout.py.
"""
