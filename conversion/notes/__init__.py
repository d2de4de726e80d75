"""What the converter notes of its work: claims, drafts, and what was converted from what.

Imports `source` and `lundprobe_zarr.integrity` and below.
Start reading at state.py.
"""
