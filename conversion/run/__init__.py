"""Conversions as they run: tasks, cluster, claims, drafts, and what was converted before.

Imports the other rooms of the converter.
Start reading at run.py.
"""
