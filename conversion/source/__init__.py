"""The source tree: inventory of files, side files, fiducials, NIfTI headers and voxels.

Imports `lundprobe_zarr.schema` and below.
Start reading at inventory.py.
"""
