"""Export to other formats: a patient's NIfTI files as in the source.

Imports `cohort` and below.
Start reading at nifti.py.
"""
