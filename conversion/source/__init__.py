"""The source tree: which files there are, side files, fiducials, NIfTI headers and voxels.

Imports `lundprobe_zarr.schema` and below.
Start reading at inventory.py.
"""
