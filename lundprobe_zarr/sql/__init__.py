"""Read-only SQL over a dataset's tables, predicates, and plain forms of DuckDB's messages.

Imports `dataset` and below.
Start reading at predicate.py.
"""
