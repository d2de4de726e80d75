"""Resampling between lattices, one axis at a time.

All lattices share the patient's axes, so interpolation is a product of three banded matrices.
Sparse products are fast, and their results do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from lundprobe_zarr.phantom.grids import Axes, Float

Array = npt.NDArray[np.floating]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AxisMap:
    """Interpolation along one axis: `matrix` (target × source); `inside` marks valid targets."""

    matrix: sparse.csr_matrix
    inside: npt.NDArray[np.bool_]


def axis_map(source: Float, target: Float, order: int) -> AxisMap:
    """Return the interpolation from `source` to `target` coordinates (mm, regular, increasing).

    `order` is 1 (linear) or 3 (cubic B-spline; the source must be spline coefficients with mirror
    boundaries). Targets outside the source take its nearest end and are not `inside`.
    """
    n = len(source)
    step = (source[-1] - source[0]) / max(n - 1, 1) or 1.0
    exact = (target - source[0]) / step
    position = np.clip(exact, 0, n - 1)
    first = np.minimum(np.floor(position).astype(np.int64), max(n - 2, 0))
    weights = _weights(position - first, order)
    taps = first[:, None] + np.arange(weights.shape[1]) - (weights.shape[1] // 2 - 1)
    columns = np.clip(np.where(taps >= n, 2 * (n - 1) - taps, np.abs(taps)), 0, n - 1)
    rows = np.repeat(np.arange(len(target)), weights.shape[1])
    shape = (len(target), n)
    matrix = sparse.csr_matrix((weights.ravel(), (rows, columns.ravel())), shape=shape)
    return AxisMap(matrix, (exact >= -1e-9) & (exact <= n - 1 + 1e-9))


def _weights(t: Float, order: int) -> Float:
    if order == 1:
        return np.stack([1 - t, t], axis=1)
    u = 1 - t
    near = (4 - 6 * t**2 + 3 * t**3) / 6
    far = (4 - 6 * u**2 + 3 * u**3) / 6
    return np.stack([u**3 / 6, near, far, t**3 / 6], axis=1)


def spline_coefficients(values: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """Return the cubic B-spline coefficients (mirror boundaries) of an array, along every axis."""
    out: Array = ndimage.spline_filter(values, order=3, output=dtype, mode="mirror")
    return out


def resampled_slices(
    values: Array, source: Axes, target: Axes, order: int = 1, fill: float | None = None
) -> Iterator[Array]:
    """Yield the slices (y, x), in z, of `values` (z, y, x) resampled from `source` to `target`.

    Targets outside the source are `fill`; if that is None, the outermost values are extended.
    """
    mz, my, mx = (axis_map(s, t, order) for s, t in zip(source, target, strict=True))
    wy, wx = my.matrix.astype(values.dtype), mx.matrix.astype(values.dtype)
    outside = ~(my.inside[:, None] & mx.inside)
    for k, inside in enumerate(mz.inside):
        if fill is not None and not inside:
            yield np.full(outside.shape, fill, dtype=values.dtype)
            continue
        taps = slice(mz.matrix.indptr[k], mz.matrix.indptr[k + 1])
        pairs = zip(mz.matrix.indices[taps], mz.matrix.data[taps], strict=True)
        plane = sum(values.dtype.type(w) * values[j] for j, w in pairs if w)
        out = np.ascontiguousarray((wx @ (wy @ plane).T).T)
        if fill is not None:
            out[outside] = fill
        yield out


def resample(
    values: Array, source: Axes, target: Axes, order: int = 1, fill: float | None = None
) -> Array:
    """Return `resampled_slices` as (z, y, x); order 3 takes plain values, not coefficients."""
    if order == 3:
        values = spline_coefficients(values, values.dtype)
    out = np.empty(tuple(len(a) for a in target), dtype=values.dtype)
    for k, plane in enumerate(resampled_slices(values, source, target, order, fill)):
        out[k] = plane
    return out


def regular_axes(low: Float, high: Float, step: float) -> Axes:
    """Return lattice axes (z, y, x) from `low` to at least `high` (x, y, z, mm) in steps of mm."""
    z, y, x = (
        lo + step * np.arange(int(np.ceil((hi - lo) / step)) + 1)
        for lo, hi in zip(low[::-1], high[::-1], strict=True)
    )
    return z, y, x


@dataclass(frozen=True)
class Field:
    """A smooth field: `values` (z, y, x) float32 on a lattice with `axes`, mm, LPS."""

    axes: Axes
    values: Float32

    def slices(self, target: Axes) -> Iterator[Array]:
        """Yield the slices (y, x) on other axes, linear inside and extended outside."""
        return resampled_slices(self.values, self.axes, target)

    def on(self, target: Axes) -> Array:
        """Return the values (z, y, x) on other axes, linear inside and extended outside."""
        return resample(self.values, self.axes, target)


def noise_field(
    rng: np.random.Generator, low: Float, high: Float, step: float, smooth: float = 0.0
) -> Field:
    """Return correlated Gaussian noise, standard deviation 1, from `low` to `high` (x, y, z, mm).

    It is sampled every `step` mm and smoothed over `smooth` lattice steps.
    """
    axes = regular_axes(low, high, step)
    values = rng.standard_normal(tuple(len(a) for a in axes), dtype=np.float32)
    if smooth:
        values = ndimage.gaussian_filter(values, smooth)
        values /= values.std()
    return Field(axes, values)
