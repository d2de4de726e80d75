"""Voxel values as the integers that DICOM holds, and by how much they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError

Volume = npt.NDArray[Any]

#: Scalings (slope, intercept) of Hounsfield units, tried in this order: whole numbers; whole
#: numbers and a half, as the air of LUND-PROBE (-999.5); multiples of a half.
_SCALINGS = ((1.0, 0.0), (1.0, -0.5), (0.5, 0.0))
#: Largest count of a dose. Half of what 32 bits hold, for readers that take them as signed.
_MOST_COUNTS = 2**31 - 1
_ZERO_DOSE_SCALING = "1E-8"
#: Slices worked on at once, for the memory of float64.
_SLAB = 4


@dataclass(frozen=True)
class Stored:
    """Integers of a volume: value = `slope` × integer + `intercept`.

    `slope` is the text that is written, `max_abs_error` the largest difference from the values
    given, in their unit.
    """

    integers: Volume
    slope: str
    intercept: float
    max_abs_error: float


def whole_numbers(volume: Volume, name: str) -> Stored:
    """Return values that are whole numbers as 16-bit integers, signed only if one is negative.

    `name` is what errors call the volume. Raises `UsageError` for other values: an MR image has no
    unit, so there is no error that may be made.
    """
    low, high = _range(volume, name)
    kind = np.iinfo(np.int16 if low < 0 else np.uint16)
    if not _fits(volume, 1.0, 0.0):
        raise _outside(name, "values that are not whole numbers", "whole numbers")
    _require_within(name, low, high, kind)
    return Stored(volume.astype(kind.dtype), "1", 0.0, 0.0)


def hounsfield(volume: Volume, name: str) -> Stored:
    """Return Hounsfield units as int16: exact where a scaling is, else rounded to whole HU.

    Raises `UsageError` for values that are not finite or beyond int16.
    """
    low, high = _range(volume, name)
    exact = (s for s in _SCALINGS if _fits(volume, *s))
    slope, intercept = next(exact, _SCALINGS[0])
    kind = np.iinfo(np.int16)
    _require_within(name, (low - intercept) / slope, (high - intercept) / slope, kind)
    integers, worst = np.empty(volume.shape, kind.dtype), 0.0
    for n, slab in _slabs(volume):
        counts = np.rint((slab - intercept) / slope)
        integers[n : n + _SLAB] = counts
        worst = max(worst, float(np.abs(counts * slope + intercept - slab).max()))
    return Stored(integers, f"{slope:g}", intercept, worst)


def dose_counts(volume: Volume, name: str) -> Stored:
    """Return a dose, Gy, as uint32 counts of a scaling of two digits, half of which is the error.

    Raises `UsageError` for a dose that is not finite, or negative by more than that error.
    """
    low, high = _range(volume, name)
    slope = _dose_scaling(high)
    step = float(slope)
    if np.rint(low / step) < 0:
        raise _outside(name, f"a dose of {low:g} Gy", "no negative dose")
    integers, worst = np.empty(volume.shape, np.uint32), 0.0
    for n, slab in _slabs(volume):
        counts = np.rint(slab / step)
        integers[n : n + _SLAB] = counts
        worst = max(worst, float(np.abs(counts * step - slab).max()))
    return Stored(integers, slope, 0.0, worst)


def _dose_scaling(high: float) -> str:
    """Return the smallest number of two digits with which `high` has few enough counts."""
    if high <= 0:
        return _ZERO_DOSE_SCALING
    least = Decimal(high) / _MOST_COUNTS
    digit = Decimal(1).scaleb(least.adjusted() - 1)
    return f"{least.quantize(digit, ROUND_CEILING):E}"


def _range(volume: Volume, name: str) -> tuple[float, float]:
    low, high = float(volume.min()), float(volume.max())  # not a number if one is not
    if not np.isfinite((low, high)).all():
        raise _outside(name, "values that are not finite numbers", "finite numbers")
    return low, high


def _slabs(volume: Volume) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    for n in range(0, len(volume), _SLAB):
        yield n, volume[n : n + _SLAB].astype(np.float64)


def _fits(volume: Volume, slope: float, intercept: float) -> bool:
    """Return whether all values are an integer by a scaling of powers of two, hence exactly."""
    if volume.dtype.kind in "iu" and (slope, intercept) == (1.0, 0.0):
        return True
    counts = ((slab - intercept) / slope for _, slab in _slabs(volume))
    return all(bool(np.array_equal(c, np.rint(c))) for c in counts)


def _require_within(name: str, low: float, high: float, kind: np.iinfo[Any]) -> None:
    if np.rint(low) < kind.min or np.rint(high) > kind.max:
        raise _outside(
            name,
            f"values from {low:g} to {high:g} in counts of their scaling",
            f"{kind.min} to {kind.max}, what 16 bits hold",
        )


def _outside(name: str, finding: str, expected: str) -> UsageError:
    return UsageError(
        f"{name} has {finding}, which DICOM cannot hold",
        expected=expected,
        remedy="export NIfTI files, which hold them",
    )
