"""The tables, manifest and card of a dataset, measured and published from its stores.

Imports `lundprobe_zarr.dataset` and below.
Start reading at publish.py.
"""
