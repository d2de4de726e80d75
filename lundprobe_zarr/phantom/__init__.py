"""A synthetic LUND-PROBE source tree: no patient's data, but recognisable in every detail.

The real dataset is under controlled access. This package writes a tree with the same names,
headers, types, grids, side files and quirks, from formulas and a seed alone, so that everything
downstream can be built, tested and benchmarked by anybody.
"""

from lundprobe_zarr.phantom.tree import DESCRIPTION, Size, write_phantom

__all__ = ["DESCRIPTION", "Size", "write_phantom"]
