"""Voxels as clients look at them: planes, outlines, values, dose and volume, of opened patients.

Imports `service.datasets` and below, and `core` beside it.
Start reading at volumes.py, then planes.py.
"""
