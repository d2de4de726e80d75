"""Read-only SQL over a dataset's tables, predicates, and what DuckDB's messages mean.

Imports `dataset` and below.
Start reading at predicate.py.
"""
