"""The converter: inventory -> read NIfTI -> plan -> write -> describe -> publish, run by dask.

Its source code is in conversion/. It is installed and imported only as lundprobe_zarr.conversion.
Start reading at run/run.py.
"""
