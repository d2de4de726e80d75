"""A synthetic LUND-PROBE source tree without any patient's data.

The real dataset is under controlled access. This room writes a tree with the same names, headers,
types, grids, side files and irregularities, from formulas and a seed only. With it, everybody can
build, test and benchmark software for the dataset. Imports `vocabulary` and `errors`. Start reading
at tree.py.
"""

from lundprobe_zarr.phantom.tree import DESCRIPTION, Size, write_phantom

__all__ = ["DESCRIPTION", "Size", "write_phantom"]
