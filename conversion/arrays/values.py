"""Convert a file's numbers to stored values: masks to bool, others as the precision requires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.conversion.source.nifti import NiftiFile
from lundprobe_zarr.errors import PrecisionError, SourceError
from lundprobe_zarr.schema.precision import Precision, Rounded, round_volume
from lundprobe_zarr.schema.scaling import recovers, scale, unscale

Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class Mask:
    """A two-valued volume: bool (z, y, x), the physical value of its foreground, voxel count.

    `foreground` is None for an all-zero mask, and an int for an unscaled file of integers. `slices`
    are those from the first to the last with a voxel.
    """

    values: npt.NDArray[np.bool_]
    foreground: int | float | None
    voxels: int
    slices: slice


def read_mask(file: NiftiFile, where: str) -> Mask:
    """Return the mask of a file with two values, 0 and one other, of any type.

    Raises `SourceError` if it has inf, NaN, a third value, or no zero.
    """
    values = scale(file.raw, file.slope, file.inter)
    # Most masks have 0 and 1 as uint8. One pass detects this and finds the slices with voxels.
    is_byte = values.dtype == np.uint8
    most = [int(plane.max()) if is_byte else 2 for plane in values]
    is_plain = max(most) <= 1
    mask = values.view(np.bool_) if is_plain else values != 0
    counts = [int(np.count_nonzero(plane)) if n else 0 for plane, n in zip(mask, most, strict=True)]
    voxels, slices = sum(counts), _extent(counts)
    _require_plain_zeros(file, voxels, where)
    foreground = None
    if voxels:
        first = slices.start
        foreground = values[first].reshape(-1)[int(mask[first].argmax())]
        if not (is_plain and voxels < mask.size):
            _require_two_values(values, mask, foreground, voxels, where)
    if file.is_scaled:
        _require_recoverable_mask(file, mask, 0.0 if foreground is None else foreground, where)
    return Mask(mask, None if foreground is None else foreground.item(), voxels, slices)


def _extent(counts: list[int]) -> slice:
    """Return the slices from the first to the last one with voxels."""
    there = np.flatnonzero(counts)
    return slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0)


def _require_two_values(
    values: Volume, mask: npt.NDArray[np.bool_], foreground: Any, voxels: int, where: str
) -> None:
    has_zero = voxels < mask.size
    # Slice by slice: a temporary array of a whole volume needs new pages, which the system zeroes.
    same = sum(int(np.count_nonzero(plane == foreground)) for plane in values)
    if has_zero and same == voxels and np.isfinite(foreground):
        return
    others = np.unique(values[mask & (values != foreground)])[:4]
    found = ", ".join(str(v) for v in ([0] if has_zero else []) + [foreground, *others])
    raise SourceError(
        f"holds {found}{'' if has_zero else ' and no 0'}",
        where=where,
        expected="a mask of 0 and one other, finite value",
        remedy="correct the file or leave it out",
    )


def _require_plain_zeros(file: NiftiFile, voxels: int, where: str) -> None:
    """Refuse -0.0 in float masks: `export` could not restore it."""
    if file.is_scaled or file.raw.dtype.kind != "f":
        return
    bits = file.raw.view(f"u{file.raw.dtype.itemsize}")
    if int(np.count_nonzero(bits)) != voxels:
        raise SourceError(
            "holds 0 and -0.0",
            where=where,
            expected="a mask of 0 and one other value",
            remedy="correct the file",
        )


def _require_recoverable_mask(
    file: NiftiFile, mask: npt.NDArray[np.bool_], foreground: Any, where: str
) -> None:
    """Refuse a scaling from which the file's two stored numbers cannot be recovered."""
    raw = file.raw
    bits = f"u{raw.dtype.itemsize}"
    with np.errstate(invalid="ignore", over="ignore"):
        numbers = unscale(np.array([0.0, foreground]), file.slope, file.inter, raw.dtype).view(bits)
    planes = zip(mask, raw, strict=True)
    if not all(np.array_equal(numbers[m.view(np.uint8)], r.view(bits)) for m, r in planes):
        raise _unrecoverable(file, where)


@dataclass(frozen=True)
class Quantity:
    """Physical values to be stored; `restores` if the file's numbers can be recovered from them.

    `range` is the smallest and largest finite value, None if there is none; `nonfinite` counts
    inf and NaN.
    """

    rounded: Rounded
    restores: bool
    range: tuple[float, float] | None
    nonfinite: int


def read_quantity(
    file: NiftiFile, precision: Precision, variable: str, modality: str | None, where: str
) -> Quantity:
    """Return the physical values of an image, dose or uncertainty file, rounded by `precision`.

    Raises `PrecisionError` for values that do not fit, or if a slope in the header makes stored
    integers (or with `lossless` any stored numbers) unrecoverable.
    """
    values = scale(file.raw, file.slope, file.inter)
    if file.is_scaled:
        _require_recoverable(values, file, precision, where)
    rounded = round_volume(values, precision, variable, modality, where)
    restores = (
        recovers(rounded.values, file.raw, file.slope, file.inter)
        if file.is_scaled
        else (rounded.exact)
    )
    finite_range, nonfinite = _finite_range(rounded.values)
    return Quantity(rounded, restores, finite_range, nonfinite)


def _require_recoverable(values: Volume, file: NiftiFile, precision: Precision, where: str) -> None:
    if file.raw.dtype.kind == "f" and precision != "lossless":
        return
    if not recovers(values, file.raw, file.slope, file.inter):
        raise _unrecoverable(file, where)


def _unrecoverable(file: NiftiFile, where: str) -> PrecisionError:
    return PrecisionError(
        f"scl_slope {file.slope!r} and scl_inter {file.inter!r}: the stored {file.raw.dtype} "
        "numbers cannot be recovered from the physical values",
        where=where,
        expected="a reversible scaling",
        remedy="correct the header or rewrite the file unscaled",
    )


def _finite_range(values: Volume) -> tuple[tuple[float, float] | None, int]:
    low, high = values.min(), values.max()
    if np.isfinite(low) and np.isfinite(high):
        return (float(low), float(high)), 0
    finite = np.isfinite(values)
    count = int(np.count_nonzero(finite))
    if not count:
        return None, values.size
    kept = values[finite]
    return (float(kept.min()), float(kept.max())), values.size - count
