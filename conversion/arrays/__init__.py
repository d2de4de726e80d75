"""One patient's store: planned, written, verified and described.

Imports `notes`, `tables`, `source` and `lundprobe_zarr.integrity` and below.
Start reading at patient.py.
"""
