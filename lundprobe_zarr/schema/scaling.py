"""Raw NIfTI numbers <-> physical values: slope and intercept, as nibabel applies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Volume = npt.NDArray[Any]


def scale(raw: Volume, slope: float, inter: float) -> Volume:
    """Return the physical values of `raw`: `slope * raw + inter` in float64, or `raw` if unscaled.

    Source of the rule: nibabel's `ArrayProxy`, which multiplies by a float64 slope.
    """
    if (slope, inter) == (1.0, 0.0):
        return raw
    return raw.astype(np.float64) * slope + inter if inter else raw.astype(np.float64) * slope


def unscale(values: Volume, slope: float, inter: float, dtype: np.dtype[Any]) -> Volume:
    """Return the raw numbers of type `dtype` of physical `values`; rounded for integer types."""
    if (slope, inter) == (1.0, 0.0):
        return _cast(values, dtype)
    raw = (values.astype(np.float64) - inter) / slope
    return _cast(np.rint(raw) if dtype.kind in "iu" else raw, dtype)


def _cast(values: Volume, dtype: np.dtype[Any]) -> Volume:
    """Return values as `dtype`, without a warning for those it cannot hold: callers compare."""
    with np.errstate(invalid="ignore", over="ignore"):
        return values.astype(dtype)


def recovers(values: Volume, raw: Volume, slope: float, inter: float) -> bool:
    """Return whether `unscale` restores every bit of `raw`; both are (z, y, x)."""
    bits = f"u{raw.dtype.itemsize}"
    return all(
        bool(np.array_equal(unscale(v, slope, inter, raw.dtype).view(bits), r.view(bits)))
        for v, r in zip(values, raw, strict=True)
    )
