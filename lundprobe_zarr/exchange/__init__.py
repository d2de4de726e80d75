"""Export to other formats: NIfTI files as in the source, in other shapes, as BIDS; nnU-Net; DICOM.

Imports `figures` and below.
Start reading at nifti.py, then cohort.py, nnunet.py and dicom/export.py.
"""
