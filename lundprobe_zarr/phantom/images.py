"""Images as they come from the scanner, the CT synthesis and the authors' export."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.phantom.anatomy import Anatomy
from lundprobe_zarr.phantom.grids import Float, Grid
from lundprobe_zarr.phantom.lettering import burn_in, text_rows
from lundprobe_zarr.phantom.paint import paint
from lundprobe_zarr.phantom.sampling import (
    Array,
    Float32,
    axis_map,
    noise_field,
    resampled_slices,
    spline_coefficients,
)
from lundprobe_zarr.vocabulary.names import AIR_HU

#: Standard deviation of the noise in either channel of the T2w acquisition.
_SIGMA = 33.0
#: Standard deviation of the synthetic CT's noise, HU.
_CT_NOISE = 5.0
#: The registered CT is rounded to 1/_FIXED_POINT HU. This is finer than float32, so decimals stay
#: arbitrary; but air is exact, and the files are about as large as the real ones.
_FIXED_POINT = 2.0**24


def t2w_slices(
    rng: np.random.Generator, anatomy: Anatomy, grid: Grid, factor: int
) -> Iterator[npt.NDArray[np.int16]]:
    """Yield the T2w image's slices (y, x), int16.

    It is acquired with Rician noise at `factor` times fewer rows and columns, shaded by the
    coil's sensitivity, and interpolated to `grid` with cubic splines, as scanners do.
    """
    coarse = grid.coarser(factor)
    truth = paint(anatomy, coarse, "T2w")
    low, high = (np.array([a[i] for a in grid.axes[::-1]]) for i in (0, -1))
    shading = noise_field(rng, low, high, 110.0, 0.8)
    wy, wx = (
        axis_map(s, t, 3).matrix.astype(np.float32)
        for s, t in zip(coarse.axes[1:], grid.axes[1:], strict=True)
    )
    for plane, shade in zip(truth, shading.slices(coarse.axes), strict=True):
        noise = rng.standard_normal((2, *plane.shape), dtype=np.float32) * np.float32(_SIGMA)
        magnitude = np.hypot(plane * (1 + np.float32(0.06) * shade) + noise[0], noise[1])
        if factor > 1:
            magnitude = (wx @ (wy @ spline_coefficients(magnitude, np.float32)).T).T
        yield np.clip(np.rint(magnitude), 0, 32767).astype(np.int16)


def sct_volume(rng: np.random.Generator, anatomy: Anatomy, grid: Grid) -> Float32:
    """Return the synthetic CT (z, y, x), float32, HU: integers plus a half, air exactly −999.5."""
    out = paint(anatomy, grid, "sCT")
    for plane in out:
        noise = np.float32(_CT_NOISE) * rng.standard_normal(plane.shape, dtype=np.float32)
        plane += np.where(plane > AIR_HU, noise, np.float32(0))
        np.floor(np.maximum(plane, np.float32(AIR_HU)), out=plane)
    out += np.float32(0.5)
    return out


def with_warning(sct: Float32) -> Float32:
    """Return a copy of a synthetic CT (z, y, x) with the warning text in every slice."""
    out = sct.copy()
    burn_in(out[:, : text_rows(out.shape[1])])
    return out


def registered_slices(sct: Float32, source: Grid, target: Grid, wipe: bool) -> Iterator[Float]:
    """Yield the synthetic CT's slices (y, x), float64, HU, B-spline resampled to the MRI grid.

    `wipe` first sets the warning text's rows to air. Outside the synthetic CT there is air.
    """
    values: Array = sct.astype(np.float64)
    if wipe:
        values[:, : text_rows(values.shape[1])] = AIR_HU
    coefficients = spline_coefficients(values)
    for plane in resampled_slices(coefficients, source.axes, target.axes, order=3, fill=AIR_HU):
        yield np.rint(plane * _FIXED_POINT) / _FIXED_POINT
