"""One patient's Zarr store: its metadata, its shards, and reading voxels from them.

Imports `storage` and below.
Start reading at metadata.py, then reader.py.
"""
