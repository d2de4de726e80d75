"""The converter: inventory -> read NIfTI -> plan -> write -> describe -> publish, run by dask.

Imported as `conversion` from a checkout and as `lundprobe_zarr.conversion` once installed, so
its modules import each other relatively and the library absolutely.
"""
