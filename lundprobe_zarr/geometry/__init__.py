"""Affines, voxel lattices and the common grid: where voxels lie in the patient.

Pure. Imports `vocabulary` and `errors`.
Start reading at affine.py.
"""
