"""Dose statistics of a structure, from the doses of its voxels, which all have one volume.

Dx is an order statistic: the largest dose that at least x % of the volume receives, so always the
dose of one of its voxels. `numpy.percentile` interpolates between two, and then less than x % may
receive what it says: in small structures noticeably less.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.measures.coverage import Covered
from lundprobe_zarr.schema.tables import D_LEVELS, D_VOLUMES, DOSE_COLUMNS, V_LEVELS
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

#: Part of a voxel by which a volume may miss a whole number of them: spacings are float32.
_ROUNDING = 1e-5


def doses(
    dose: npt.NDArray[Any],
    inside: Covered,
    outside: Literal["leave out", "zero"] = "leave out",
    voxels: int = 0,
) -> npt.NDArray[Any]:
    """Doses (n,), Gy, of a structure's covered voxels; `dose` (z, y, x) is that of their grid.

    Tissue that the planning grid does not cover has no dose and is left out. With
    `outside="zero"` it counts as 0 Gy: then `voxels` says how many the structure has in all.
    """
    values: npt.NDArray[Any] = dose[inside.box][inside.part]
    if outside == "zero":
        return np.append(values, np.zeros(voxels - len(values), values.dtype))
    return values


def ascending(values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    """Sort doses in place and return them; None without doses, or where one is inf or NaN.

    NaN in a table would make every mean over patients NaN, and SQL has it greater than any number,
    so "above 60 Gy" would find it.
    """
    if values is None or not np.isfinite(values).all():
        return None
    values.sort()
    return values


def dose_columns(values: npt.NDArray[Any] | None, voxel_cc: float) -> dict[str, float | None]:
    """Dose statistics of doses (n,), Gy, in `ascending` order, of voxels of `voxel_cc` cm³ each.

    All are None without `values` or any in it. D of a volume is None where the structure is smaller
    than that.
    """
    if values is None or not values.size:
        return dict.fromkeys(DOSE_COLUMNS)
    mean = float(values.mean(dtype=np.float64))
    counts = [count_at_or_above(values, PRESCRIPTION_GY * x / 100) for x in V_LEVELS]
    n = values.size
    needed = [voxels_for_percent(x, n) for x in D_LEVELS]
    needed += [voxels_for_volume(cc, voxel_cc) for cc in D_VOLUMES]
    found = [mean, values[0], values[-1]]
    found += [values[n - k] if k <= n else None for k in needed]
    found += [100.0 * c / n for c in counts] + [c * voxel_cc for c in counts]
    return {
        name: None if value is None else float(value)
        for name, value in zip(DOSE_COLUMNS, found, strict=True)
    }


def voxels_for_percent(percent: float | Fraction, voxels: int) -> int:
    """The fewest of `voxels` that are at least `percent` of them, and at least one."""
    return max(1, -(-(Fraction(percent) * voxels) // 100))


def voxels_for_volume(cc: float, voxel_cc: float) -> int:
    """The fewest voxels that are at least `cc` cm³, and at least one."""
    return max(1, int(np.ceil(cc / voxel_cc - _ROUNDING)))


def count_at_or_above(values: npt.NDArray[Any], threshold: float) -> int:
    """Number of `ascending` values >= threshold, compared exactly although they may be float32."""
    return int(counts_at_or_above(values, np.array([threshold]))[0])


def counts_at_or_above(
    values: npt.NDArray[Any], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Numbers (m,) of `ascending` values >= each of `thresholds` (m,), compared exactly."""
    kind = values.dtype.type
    least = thresholds.astype(kind)  # in the values' type, or all of them would be converted
    least = np.where(least.astype(np.float64) < thresholds, np.nextafter(least, kind("inf")), least)
    return np.asarray(values.size - np.searchsorted(values, least), np.int64)
