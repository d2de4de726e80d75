"""The words of LUND-PROBE: structures, observers, file names, nearest names.

Pure. Imports `errors` alone.
Start reading at names.py.
"""
