"""From a file's numbers to the values that are stored: masks to bool, the rest by precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import PrecisionError, SourceError
from lundprobe_zarr.schema.precision import Precision, Rounded, round_volume
from lundprobe_zarr.schema.scaling import recovers, scale

from .nifti import NiftiFile

Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class Mask:
    """A two-valued volume: bool (z, y, x), the physical value of its foreground, voxel count.

    `foreground` is None for a mask without any foreground.
    """

    values: npt.NDArray[np.bool_]
    foreground: float | None
    voxels: int


def read_mask(file: NiftiFile, where: str) -> Mask:
    """The mask a file holds: 0 and one other value, of any type.

    Raises `SourceError` if it holds NaN, a third value, or no zero.
    """
    values = scale(file.raw, file.slope, file.inter)
    mask = values != 0
    voxels = int(np.count_nonzero(mask))
    if voxels == 0:
        return Mask(_zeros_alone(mask, values, where), None, 0)
    foreground = values.reshape(-1)[int(mask.argmax())]
    if int(np.count_nonzero(values == foreground)) != voxels:
        others = np.unique(values[mask & (values != foreground)])[:4]
        raise SourceError(
            f"{where}: holds 0, {foreground} and {', '.join(str(v) for v in others)}; expected a "
            "mask of 0 and one other value; correct the file or leave it out"
        )
    if voxels == mask.size:
        raise SourceError(
            f"{where}: every voxel is {foreground}; expected a mask of 0 and one other value; "
            "correct the file or leave it out"
        )
    return Mask(_zeros_alone(mask, values, where), float(foreground), voxels)


def _zeros_alone(mask: npt.NDArray[np.bool_], values: Volume, where: str) -> npt.NDArray[np.bool_]:
    """Refuse -0.0 in float masks: it could not be told from 0 when the file is written back."""
    if values.dtype.kind == "f" and bool(np.signbit(values[~mask]).any()):
        raise SourceError(
            f"{where}: holds 0 and -0.0; expected a mask of 0 and one other value; correct the file"
        )
    return mask


@dataclass(frozen=True)
class Quantity:
    """Physical values ready to be stored, and whether the file's own numbers come back from them.

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
    """Physical values of an image, dose or uncertainty file, rounded as `precision` allows.

    Raises `PrecisionError` for values that do not fit, or if a slope in the header loses raw
    integers (any precision) or any raw number (`lossless`).
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
        raise PrecisionError(
            f"{where}: scl_slope {file.slope!r} and scl_inter {file.inter!r} lose raw numbers of "
            f"type {file.raw.dtype}: they do not come back from the physical values; expected a "
            "scaling that can be undone; correct the header or rewrite the file unscaled"
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
