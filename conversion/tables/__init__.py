"""Measure a dataset's stores and publish its tables, manifest and card.

Imports `lundprobe_zarr.dataset` and below.
Start reading at publish.py.
"""
