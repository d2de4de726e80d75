"""Export to other formats: NIfTI files as in the source, in other shapes, as BIDS; nnU-Net.

Imports `patches` and below.
Start reading at nifti.py, then cohort.py and nnunet.py.
"""
