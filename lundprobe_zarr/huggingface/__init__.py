"""Hugging Face `datasets` of tables, lazy volumes, slices and patches.

Imports `stream` and below. This module imports nothing, so that importing the package is cheap:
it calls `registration.register_on_import`.
Start reading at loading.py.
"""
