"""Run conversions: tasks, the dask cluster, and compatibility with an existing dataset.

Imports the other rooms of the converter.
Start reading at run.py.
"""
