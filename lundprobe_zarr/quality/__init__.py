"""Quality control of a cohort: rules, their report, and the numbers that the authors published.

Imports `figures` and below.
Start reading at check.py.
"""
