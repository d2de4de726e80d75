"""What is served of a dataset: its index, revision, tables, and work on them.

Imports `service.access`, `service.http` and rooms below the service.
Start reading at published.py.
"""
