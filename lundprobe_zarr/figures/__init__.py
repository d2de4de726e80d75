"""Pictures of patients: slices, panels, previews and thumbnails.

Imports `cohort` and below.
Start reading at preview.py.
"""
