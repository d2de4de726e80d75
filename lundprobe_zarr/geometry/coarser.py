"""Coarser levels of a volume: each voxel stands for a square of voxels of the same slice."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def coarser_shape(shape: tuple[int, int, int], level: int) -> tuple[int, int, int]:
    """Return the shape (z, y, x) of a level of a volume: halved along y and x, rounded up."""
    z, y, x = shape
    return z, -(-y >> level), -(-x >> level)


def coarser(volume: npt.NDArray[Any], level: int, step: float = 0.0) -> npt.NDArray[Any]:
    """Return a level of a volume (z, y, x): squares of 2**level voxels of a slice become one.

    A voxel of a mask is set if at least half of those it covers are. Else it is their mean, NaN
    if any of them is, or if both infinities are; rounded half to even to a multiple of `step`,
    which is a power of two, or of 1 where the type is of integers.
    Squares at the far edges may be cut: then what they cover counts. The type stays.
    """
    dtype = volume.dtype
    wide: Any = np.int64 if dtype.kind in "iu" else np.float64
    if dtype.kind == "b":
        wide = np.uint8 if level < 4 else np.uint32
    sums = volume.astype(wide)
    with np.errstate(invalid="ignore"):
        for _ in range(level):
            sums = _pairs(_pairs(sums, 1), 2)
    counts = np.outer(*(_covered(n, level) for n in volume.shape[1:]))
    if dtype.kind == "b":
        return sums >= (counts + 1) // 2
    means = sums / counts
    step = 1.0 if dtype.kind in "iu" else step
    return (np.rint(means / step) * step if step else means).astype(dtype)


def _pairs(values: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    """Return the sums of neighbours along an axis; a last one without a neighbour stays."""
    along = (slice(None),) * axis
    summed = values[(*along, slice(0, None, 2))].copy()
    second = values[(*along, slice(1, None, 2))]
    summed[(*along, slice(0, second.shape[axis]))] += second
    return summed


def _covered(length: int, level: int) -> npt.NDArray[np.int64]:
    """Return how many of `length` voxels each voxel of the level covers."""
    starts = np.arange(0, length, 2**level)
    return np.asarray(np.minimum(length - starts, 2**level))
