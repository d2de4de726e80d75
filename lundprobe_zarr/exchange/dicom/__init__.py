"""A patient as DICOM and DICOM-RT: images, structure sets, dose, segmentations, uncertainty.

Imports `figures` (contours) and below, and the packages of the extra `dicom`.
Start reading at export.py, then patient.py.
"""
