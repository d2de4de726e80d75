"""Validation of datasets, and verified copies.

Imports `dataset` and below.
Start reading at validate.py.
"""
