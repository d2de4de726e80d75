"""Patches read ahead for training: order, resuming, workers, PyTorch, benchmark.

Imports `patches` and below.
Start reading at stream.py.
"""
