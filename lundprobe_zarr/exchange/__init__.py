"""A patient in other formats: NIfTI files as the source had them.

Imports `cohort` and below.
Start reading at nifti.py.
"""
