"""One patient's store: planned, written, verified and described.

Imports `source`, `tables.measure` and `lundprobe_zarr.stores`.
Start reading at patient.py.
"""
