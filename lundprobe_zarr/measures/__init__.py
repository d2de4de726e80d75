"""Measures of dose and masks, pure on arrays: no file, no table.

Imports `schema` and below.
Start reading at dose_volume.py.
"""
