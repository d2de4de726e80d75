"""SQL over the tables, cohorts, and the forms in which results are given.

Imports `service.hub` and below, and `core` and `gate` beside it.
Start reading at questions.py.
"""
