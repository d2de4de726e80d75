"""The converter's notes: leases, drafts, and the sources of converted patients.

Imports `source` and `lundprobe_zarr.integrity` and below.
Start reading at state.py.
"""
