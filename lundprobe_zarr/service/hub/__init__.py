"""The Hub's API for its unmodified clients: repositories, bytes of files, the dataset viewer.

Imports `service.datasets` and below, and `core` and `gate` beside it.
Start reading at api.py.
"""
