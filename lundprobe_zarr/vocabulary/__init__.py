"""Names used in LUND-PROBE: structures, observers, files; suggestions for unknown names.

Pure. Imports only `errors`.
Start reading at names.py.
"""
