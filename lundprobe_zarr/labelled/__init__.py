"""The accessor `.lp`: crop, resample, select, plot and convert labelled volumes.

Imports `figures`, `cohort` and below.
Start reading at accessor.py.
"""
