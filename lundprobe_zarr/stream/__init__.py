"""Reading of patches for training: read-ahead, resuming, workers, PyTorch, benchmark.

Imports `patches` and below.
Start reading at stream.py.
"""
