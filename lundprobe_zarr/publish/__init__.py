"""Descriptions of a dataset: its card, Croissant metadata and Intake catalog.

Imports `cohort` and below.
Start reading at card.py.
"""
