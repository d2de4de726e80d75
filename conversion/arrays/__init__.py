"""Plan, write, verify and describe one patient's store.

Imports `notes`, `tables`, `source` and `lundprobe_zarr.integrity` and below.
Start reading at patient.py.
"""
