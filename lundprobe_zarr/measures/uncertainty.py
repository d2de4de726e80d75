"""Estimates of uncertainty, and the edits of observers by how uncertain the voxels were.

Of the n folds' masks only the share p = k / n that hold a voxel matters. The estimates made of it:
the fold mean p; the entropy -p log2 p - (1 - p) log2 (1 - p), in bits; the standard deviation of
the folds' decisions, sqrt(p (1 - p)); and the disagreement, the share of pairs of different folds
that differ, 2 k (n - k) / (n (n - 1)). The dataset's own map is another: the standard deviation of
the folds' SoftMax, which knows of probabilities where these know of decisions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import FloatArray

Mask = npt.NDArray[np.bool_]
Bins = npt.NDArray[np.uint8]
#: Bins of the map, each from one edge up to, not including, the next. A standard deviation of
#: probabilities is 0.5 at most, or a little more with n - 1: the last bin has no end.
MAP_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4)
#: Upper ends of these bins, the last for what the map can reach.
MAP_ENDS = (*MAP_EDGES[1:], 0.5)
#: Number of a voxel whose value is no number: it is in no bin.
_NO_BIN = np.uint8(255)


def fold_mean(k: npt.ArrayLike, folds: int) -> FloatArray:
    """Return the share of `folds` masks that hold a voxel which `k` of them hold."""
    return np.asarray(k, np.float64) / folds


def entropy_bits(p: npt.ArrayLike) -> FloatArray:
    """Return the entropy, bits, of a decision with probability p: 0 at 0 and 1, 1 at a half."""
    p = np.asarray(p, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(q > 0, q * np.log2(q), 0.0) for q in (p, 1 - p)]
    return np.asarray(0.0 - terms[0] - terms[1])


def decision_sd(p: npt.ArrayLike) -> FloatArray:
    """Return the standard deviation sqrt(p (1 - p)) of decisions of which a share p is yes."""
    p = np.asarray(p, np.float64)
    return np.asarray(np.sqrt(p * (1 - p)))


def disagreement(k: npt.ArrayLike, folds: int) -> FloatArray:
    """Return the share of pairs of different folds that differ where `k` of them hold a voxel.

    NaN for a single fold, which has no pair.
    """
    k = np.asarray(k, np.float64)
    pairs = folds * (folds - 1)
    return np.asarray(2 * k * (folds - k) / pairs if pairs else np.full_like(k, np.nan))


def map_bins(values: npt.NDArray[np.floating]) -> Bins:
    """Return the number of the bin of each value of the map; 255 where it is NaN."""
    bins = np.zeros(values.shape, np.uint8)
    for edge in MAP_EDGES[1:]:
        bins += values >= edge
    bins[np.isnan(values)] = _NO_BIN
    return bins


@dataclass(frozen=True)
class Binned:
    """Voxels of a whole volume by bin: their number, and the sum of the map over them (or NaN)."""

    voxels: npt.NDArray[np.int64]
    map_sum: FloatArray

    def __add__(self, other: Binned) -> Binned:
        """Return the bins of both parts of a volume."""
        return Binned(self.voxels + other.voxels, self.map_sum + other.map_sum)

    @classmethod
    def of(cls, bins: Bins, number: int, values: npt.NDArray[np.floating] | None) -> Binned:
        """Count voxels by bin, of `number`; `values` is the map there, if there is one."""
        flat = bins.ravel()
        voxels = np.bincount(flat, minlength=256)[:number].astype(np.int64)
        if values is None:
            return cls(voxels, np.full(number, np.nan))
        summed: FloatArray = np.bincount(flat, values.ravel(), 256)[:number].astype(np.float64)
        return cls(voxels, summed)


@dataclass(frozen=True)
class Edits:
    """Voxels by bin: in the observer's mask, added to the start and removed from it."""

    inside: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]
    removed: npt.NDArray[np.int64]

    @classmethod
    def of(cls, start: Mask, edited: Mask, bins: Bins, number: int) -> Edits:
        """Count what an observer made of the mask `start`, by the bins of the same box."""

        def counted(mask: Mask) -> npt.NDArray[np.int64]:
            return np.bincount(bins[mask], minlength=256)[:number].astype(np.int64)

        return cls(counted(edited), counted(edited & ~start), counted(start & ~edited))


def fold_counts(folds: Sequence[Mask]) -> Bins:
    """Return how many of the masks hold each voxel."""
    counts = np.zeros(folds[0].shape, np.uint8)
    for mask in folds:
        counts += mask
    return counts
