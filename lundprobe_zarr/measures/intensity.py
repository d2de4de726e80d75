"""Statistics of image values inside a mask: mean, standard deviation and exact order statistics.

The percentile of p % is the smallest value such that at least p % of the voxels are not larger: the
value of rank ceil(n p / 100) in ascending order, NumPy's `inverted_cdf` (definition 1 of Hyndman
and Fan, 1996, doi:10.2307/2684934). It is always a value that occurs. Mean and standard deviation
(of the population: divided by n) are summed in float64, slice by slice.

Ranks are found by counting: of whole numbers of 16 bits each value, of others their first 16 bits,
and by sorting only those that share these bits with a percentile. That takes a tenth of the time of
sorting all, and has a slice at a time in memory, not the whole body. What is found depends on the
values alone, not on their type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.tables import PERMILLE, percentile_name

Volume = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
#: Numbers of 16 bits.
_BINS = 1 << 16


@dataclass(frozen=True)
class Inside:
    """The voxels of a mask of `shape` (z, y, x): its box, and a bit a voxel of the box's slices."""

    shape: tuple[int, ...]
    box: Box
    slices: tuple[npt.NDArray[np.uint8], ...]

    @classmethod
    def of(cls, mask: Mask) -> Inside | None:
        """Pack a mask (z, y, x), bool; None if it has no voxel."""
        box = bounding_box(mask)
        if box is None:
            return None
        return cls(mask.shape, box, tuple(np.packbits(plane) for plane in mask[box]))

    def mask(self, out: npt.NDArray[np.uint8]) -> Mask:
        """Unpack the mask (z, y, x) into the bytes of `out`, as many as it has voxels."""
        out.fill(0)
        mask = out.view(np.bool_).reshape(self.shape)
        for plane, inside in zip(mask[self.box], self._planes(), strict=True):
            plane[...] = inside
        return mask

    def _planes(self) -> Iterator[Mask]:
        shape = tuple(s.stop - s.start for s in self.box[1:])
        for bits in self.slices:
            yield np.unpackbits(bits, count=shape[0] * shape[1]).view(np.bool_).reshape(shape)

    def values(self, image: Volume) -> Iterator[Volume]:
        """Yield the values of an image (z, y, x) inside the mask, slice by slice, in C order."""
        for plane, inside in zip(image[self.box], self._planes(), strict=True):
            yield plane[inside]


@np.errstate(over="ignore", invalid="ignore")  # sums of squares above 1e308 give inf or NaN
def intensity(image: Volume, inside: Inside) -> dict[str, float | int] | None:
    """Return statistics of the values of an image (z, y, x) inside a mask.

    They are `voxels`, `mean`, `sd`, `min`, `max` and the percentiles, in the image's unit. None if
    there is a value that is inf or NaN.
    """
    found = _of_whole_numbers(image, inside) or _of_any(image, inside)
    if found is None:
        return None
    names = ["min", *map(percentile_name, PERMILLE), "max"]
    return {
        "voxels": found.voxels,
        "mean": found.mean,
        "sd": found.sd,
        **dict(zip(names, found.ranked, strict=True)),
    }


@dataclass(frozen=True)
class _Found:
    voxels: int
    mean: float
    sd: float
    ranked: list[float]


def _ranks(n: int) -> list[int]:
    """Return the ranks, from 1 on, of the smallest value, the percentiles and the largest."""
    return [1, *(max(1, -(-n * p // 1000)) for p in PERMILLE), n]


def _of_whole_numbers(image: Volume, inside: Inside) -> _Found | None:
    """Return the statistics from counts of each value; None unless int16 holds all of them."""
    counts = np.zeros(_BINS, np.int64)
    for part in inside.values(image):
        whole = part.astype(np.int16, copy=False)
        if whole is not part and not np.array_equal(whole, part):
            return None
        counts += np.bincount(whole.view(np.uint16), minlength=_BINS)
    counts = np.roll(counts, _BINS // 2)  # negative numbers first
    value = np.arange(_BINS) - _BINS // 2
    n = int(counts.sum())
    mean = int((counts * value).sum()) / n
    sd = float(np.sqrt((counts * (value - mean) ** 2).sum() / n))
    return _Found(
        n, mean, sd, value[np.searchsorted(counts.cumsum(), _ranks(n))].astype(float).tolist()
    )


def _of_any(image: Volume, inside: Inside) -> _Found | None:
    """Return the statistics of any numbers; None if one is inf or NaN."""
    place = _places(image.dtype)
    counts = np.zeros(_BINS, np.int64)
    n, total, squares, pivot = 0, 0.0, 0.0, 0.0
    for part in inside.values(image):
        counts += np.bincount(_first_bits(part), minlength=_BINS)
        wide = part.astype(np.float64)
        total += float(wide.sum())
        # Squares about a number near the mean lose few digits. A dot product would wake the threads
        # of BLAS, which costs more than it saves.
        pivot = pivot if n else float(wide.mean())
        n += len(part)
        wide -= pivot
        wide *= wide
        squares += float(wide.sum())
    if image.dtype.kind == "f" and counts[~np.isfinite(_first_values(image.dtype))].any():
        return None
    mean = total / n
    variance = np.maximum(0.0, squares / n - np.square(mean - pivot))
    ordered = np.zeros_like(counts)
    ordered[place] = counts
    ranks = _ranks(n)
    bins = np.searchsorted(ordered.cumsum(), ranks)
    wanted = np.zeros(_BINS, np.bool_)
    wanted[bins] = True
    near = [part[wanted[place][_first_bits(part)]] for part in inside.values(image)]
    passed_over = np.where(wanted, 0, ordered).cumsum()[bins].tolist()
    candidates = np.sort(np.concatenate(near))
    ranked = [float(candidates[r - 1 - p]) for r, p in zip(ranks, passed_over, strict=True)]
    return _Found(n, mean, float(np.sqrt(variance)), ranked)


def _first_bits(values: Volume) -> npt.NDArray[np.uint16]:
    """Return the first 16 bits of each value, of 16 bits or more."""
    words = values.dtype.itemsize // 2
    return values.view(np.uint16)[_most_significant(words) :: words]


def _most_significant(words: int) -> int:
    return words - 1 if sys.byteorder == "little" else 0


def _first_values(dtype: np.dtype[Any]) -> Volume:
    """Return the value of each of the first 16 bits, the others being 0."""
    words = dtype.itemsize // 2
    found = np.zeros((_BINS, words), np.uint16)
    found[:, _most_significant(words)] = np.arange(_BINS)
    return found.view(dtype).ravel()


def _places(dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """Return the place of each of the first 16 bits in the order of the values."""
    bits = np.arange(_BINS)
    if dtype.kind == "u":
        return bits
    negative = bits >= _BINS // 2
    if dtype.kind == "i":
        return np.where(negative, bits - _BINS // 2, bits + _BINS // 2)
    # IEEE 754: the bits of negative numbers are in the opposite order
    return np.where(negative, _BINS - 1 - bits, bits + _BINS // 2)
