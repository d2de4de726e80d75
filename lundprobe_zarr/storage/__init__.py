"""Bytes anywhere: a disk, a web server or a bucket, with retries, caches and access checks.

Knows no word of LUND-PROBE. Imports `schema` and below.
Start reading at location.py.
"""
