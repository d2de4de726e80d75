"""Resample labelled volumes, lazily, with every voxel centre where it belongs.

Values belong to voxel centres. A voxel owns the half-spacing around its centre, so a volume ends
half a voxel beyond its outermost centres; up to there the outermost value is carried on, and
beyond there nothing is known: `fill` has to be given, or it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.layout import SPATIAL_DIMS
from lundprobe_zarr.views.labelled_grid import (
    Grid,
    Labelled,
    Shape,
    grid_of,
    over_volumes,
    require_volume,
    traceable,
)
from lundprobe_zarr.vocabulary.geometry import FloatArray, spacing

#: Highest spline order of `scipy.ndimage`.
_HIGHEST_ORDER = 5
#: Voxels about those asked for that splines above order 1 are given too. They are felt at any
#: distance, but 0.43 times less each voxel (the largest pole, of order 5): 1e-9 at this one.
_SPLINE_SUPPORT = 24
#: A voxel in half of which there is mask is mask; weights add up to a half but for rounding.
_HALF = 0.5 - 1e-6
#: Part of a voxel by which places that should coincide may differ by rounding.
_ROUNDING = 1e-6


def respaced(grid: Grid, spacing_mm: float | Sequence[float]) -> Grid:
    """The grid with voxels of `spacing_mm` (z, y, x, or one for all), about the same centre.

    It has as many voxels as fit between the old grid's outer edges, so that none lies outside;
    at least one along each axis. The old grid itself if the spacing is its own.
    """
    wanted = voxel_sizes(spacing_mm)
    old = np.array(grid.shape)
    ratio = wanted / grid.spacing_mm
    # Spacings in headers are float32: one that should be the same nearly is.
    ratio = np.where(np.abs(ratio - 1) < _ROUNDING, 1.0, ratio)
    new = np.maximum(1, np.floor(old / ratio + _ROUNDING)).astype(int)
    z, y, x = new.tolist()
    moved = grid.stepped((old - 1) / 2 - (new - 1) / 2 * ratio, ratio, (z, y, x))
    # what was asked for to the last bit, where scaling the old spacing misses it by one
    columns = grid.affine[:3, :3] / spacing(grid.affine) * wanted[::-1]
    moved.affine[:3, :3] = np.where(ratio[::-1] == 1, grid.affine[:3, :3], columns)
    return moved


def voxel_sizes(spacing_mm: float | Sequence[float]) -> FloatArray:
    """A voxel size (z, y, x), or one for all, as (3,), mm; raises `UsageError` if it is none."""
    sizes = np.asarray(spacing_mm, dtype=np.float64)
    if sizes.shape not in ((), (3,)) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UsageError(
            f"spacing_mm is {spacing_mm!r}; expected positive millimetres, (z, y, x) or one number"
        )
    return np.array(np.broadcast_to(sizes, (3,)))


def resample_to(
    data: Labelled, grid: Grid, order: int | None = None, fill: float | None = None
) -> Labelled:
    """`data` on the voxels of `grid`; see `lp.resample` and `lp.resample_like`."""
    if order is not None and order not in range(_HIGHEST_ORDER + 1):
        raise UsageError(f"order is {order!r}; expected 0 (nearest), 1 (linear) … {_HIGHEST_ORDER}")
    source = grid_of(require_volume(data))
    move = _Move.between(source, grid)
    if fill is None and move.leaves():
        raise UsageError(
            f"the grid asked for, {grid.shape} voxels (z, y, x) of {grid.spacing_mm} mm, reaches "
            f"beyond the volume, {source.shape} voxels of {source.spacing_mm} mm; expected one "
            "inside it, or `fill=` with the value to put there, e.g. fill=float('nan')"
        )
    return over_volumes(data, partial(_resample_array, move=move, order=order, fill=fill), grid)


def needed(data: Labelled, grid: Grid) -> Labelled:
    """The part of `data` that linear resampling to `grid` takes, as one slicing of it."""
    source = grid_of(require_volume(data))
    box, _ = _Move.between(source, grid).window(0)
    return traceable(data, source).isel(box)


@dataclass(frozen=True)
class _Move:
    """From voxel indices (z, y, x) of a new grid to those of an old one: matrix @ new + offset."""

    matrix: FloatArray
    offset: FloatArray
    old: Shape
    new: Shape
    #: First and last place along each old axis where there are values, voxels.
    low: FloatArray
    high: FloatArray

    @classmethod
    def between(cls, old: Grid, new: Grid) -> _Move:
        full = np.linalg.inv(old.affine) @ new.affine
        matrix, offset = full[:3, :3][::-1, ::-1].copy(), full[:3, 3][::-1].copy()
        if np.all(np.abs(matrix - np.diag(np.diag(matrix))) * np.max(new.shape) < _ROUNDING):
            matrix = np.diag(np.diag(matrix))
        low, high = np.full(3, -0.5), np.array(old.shape) - 0.5
        return cls(matrix, offset, old.shape, new.shape, low - _ROUNDING, high + _ROUNDING)

    def corners(self) -> FloatArray:
        """Places (8, 3) of the new grid's corner voxels in the old grid."""
        ends = np.array(list(product(*((0, n - 1) for n in self.new))))
        return np.asarray(ends @ self.matrix.T + self.offset)

    def leaves(self) -> bool:
        """Whether any new voxel's centre lies outside the old volume."""
        corners = self.corners()
        return bool((corners < self.low).any() or (corners > self.high).any())

    def window(self, margin: int) -> tuple[dict[str, slice], _Move]:
        """The part of the old volume between whose voxels new ones lie, and the move from there."""
        corners, most = self.corners(), np.array(self.old)
        start = np.clip(np.floor(corners.min(axis=0)) - margin, 0, most - 1).astype(int)
        stop = np.clip(np.ceil(corners.max(axis=0)) + margin + 1, start + 1, most).astype(int)
        box = {d: slice(int(a), int(b)) for d, a, b in zip(SPATIAL_DIMS, start, stop, strict=True)}
        z, y, x = (stop - start).tolist()
        moved = _Move(
            self.matrix,
            self.offset - start,
            (z, y, x),
            self.new,
            self.low - start,
            self.high - start,
        )
        return box, moved

    def outside(self) -> npt.NDArray[np.bool_]:
        """Which new voxels (z, y, x) have their centre outside the old volume."""
        result = np.zeros(self.new, dtype=bool)
        indices = np.ogrid[tuple(slice(n) for n in self.new)]
        for row, shift, low, high in zip(
            self.matrix, self.offset, self.low, self.high, strict=True
        ):
            place = shift + sum(f * i for f, i in zip(row, indices, strict=True) if f)
            result |= (place < low) | (place > high)
        return result


def _resample_array(
    data: xr.DataArray, move: _Move, order: int | None, fill: float | None
) -> xr.DataArray:
    degree = 1 if order is None else order
    box, moved = move.window(0 if degree <= 1 else _SPLINE_SUPPORT)
    dtype = _result_type(data.dtype, degree, fill if move.leaves() else None)
    result: xr.DataArray = xr.apply_ufunc(
        partial(_resample_volumes, move=moved, order=degree, fill=fill, dtype=dtype),
        data.isel(box),
        input_core_dims=[SPATIAL_DIMS],
        output_core_dims=[SPATIAL_DIMS],
        exclude_dims=set(SPATIAL_DIMS),
        dask="parallelized",
        output_dtypes=[dtype],
        dask_gufunc_kwargs={
            "output_sizes": dict(zip(SPATIAL_DIMS, move.new, strict=True)),
            "allow_rechunk": True,
        },
        keep_attrs=True,
    )
    return result.transpose(*data.dims)


def _result_type(dtype: np.dtype[Any], order: int, fill: float | None) -> np.dtype[Any]:
    if order == 0 or dtype.kind == "b":
        return type_with(dtype, fill)
    return np.result_type(dtype, np.float32)


def type_with(dtype: np.dtype[Any], fill: float | None) -> np.dtype[Any]:
    """The type that holds values of `dtype` and `fill` too; masks stay masks, filled with False."""
    if fill is None or dtype.kind not in "iu":
        return dtype
    bounds = np.iinfo(dtype)
    fits = float(fill).is_integer() and bounds.min <= fill <= bounds.max
    return dtype if fits else np.result_type(dtype, np.float32)


def _resample_volumes(
    volumes: npt.NDArray[Any],
    move: _Move,
    order: int,
    fill: float | None,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Resample each of `volumes` (…, z, y, x)."""
    labels = volumes.shape[:-3]
    result = np.empty((*labels, *move.new), dtype)
    outside = move.outside() if move.leaves() else None
    for place in np.ndindex(*labels):
        result[place] = _resample_volume(volumes[place], move, order, dtype)
        if outside is not None:
            result[place][outside] = False if dtype.kind == "b" else fill
    return result


def _resample_volume(
    volume: npt.NDArray[Any], move: _Move, order: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    # Here, not above: opening a patient should not wait for scipy.
    from scipy.ndimage import affine_transform

    is_mask = dtype.kind == "b"
    diagonal = np.diag(move.matrix)
    # scipy takes a diagonal for separable axes, which is several times as fast
    separable = np.array_equal(move.matrix, np.diag(diagonal))
    moved = affine_transform(
        volume.astype(np.float64) if is_mask else volume,
        diagonal if separable else move.matrix,
        move.offset,
        output_shape=move.new,
        output=np.dtype(np.float64) if is_mask else dtype,
        order=order,
        mode="nearest",
    )
    return np.asarray(moved >= _HALF if is_mask else moved)
