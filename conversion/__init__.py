"""The converter: inventory -> read NIfTI -> plan -> write -> describe -> publish, run by dask.

Its sources stand in conversion/; it is installed and imported as lundprobe_zarr.conversion alone.
Start reading at run/run.py.
"""
