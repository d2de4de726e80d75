"""Lazy resampling of labelled volumes with exact voxel centres.

Values belong to voxel centres. A volume ends half a voxel beyond its outermost centres. Up to
there the outermost value applies; beyond, values are unknown, so `fill` is required.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.lattice import Grid, Move, resample_volume
from lundprobe_zarr.labelled.grid import (
    Labelled,
    grid_of,
    over_volumes,
    require_volume,
    traceable,
)
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS

#: Highest spline order of `scipy.ndimage`.
_HIGHEST_ORDER = 5
#: Extra voxels around the requested box for splines above order 1. The influence of a voxel falls
#: by 0.43 per voxel (the largest pole, of order 5): to 1e-9 at this distance.
_SPLINE_SUPPORT = 24
#: Voxel limit of one volume, 20 times a full-size MRI; larger grids are mistakes that would fail
#: only when computed.
_MOST_VOXELS = 2**31


def resample_to(
    data: Labelled, grid: Grid, order: int | None = None, fill: float | None = None
) -> Labelled:
    """Resample to the voxels of `grid`; see `lp.resample` and `lp.resample_like`."""
    if order is not None and order not in range(_HIGHEST_ORDER + 1):
        raise UsageError(
            f"order is {order!r}", expected=f"0 (nearest), 1 (linear) … {_HIGHEST_ORDER}"
        )
    _require_sane(grid)
    source = grid_of(require_volume(data))
    move = Move.between(source, grid)
    if fill is None and move.leaves():
        raise UsageError(
            f"the requested grid, {grid.shape} voxels (z, y, x) of "
            f"{grid.spacing_mm} mm, reaches beyond the volume, {source.shape} "
            f"voxels of {source.spacing_mm} mm",
            expected=("a grid inside it, or `fill=` with a value, e.g. fill=float('nan')"),
        )
    return over_volumes(data, partial(_resample_array, move=move, order=order, fill=fill), grid)


def _require_sane(grid: Grid) -> None:
    voxels = prod(int(n) for n in grid.shape)
    if voxels > _MOST_VOXELS:
        raise UsageError(
            f"the requested grid has {grid.shape} voxels (z, y, x) of "
            f"{grid.spacing_mm} mm, {voxels:.3g} in all or {4 * voxels:.3g} "
            "bytes a volume of float32",
            expected="at most 2**31 voxels",
            remedy="check that the spacing is in mm, choose a larger one, or crop first",
        )


def needed(data: Labelled, grid: Grid) -> Labelled:
    """Return the box of `data` that linear resampling to `grid` needs."""
    source = grid_of(require_volume(data))
    box, _ = Move.between(source, grid).window(0)
    return traceable(data, source).isel(dict(zip(SPATIAL_DIMS, box, strict=True)))


def _resample_array(
    data: xr.DataArray, move: Move, order: int | None, fill: float | None
) -> xr.DataArray:
    degree = 1 if order is None else order
    box, moved = move.window(0 if degree <= 1 else _SPLINE_SUPPORT)
    dtype = _result_type(data.dtype, degree, fill if move.leaves() else None)
    result: xr.DataArray = xr.apply_ufunc(
        partial(_resample_volumes, move=moved, order=degree, fill=fill, dtype=dtype),
        data.isel(dict(zip(SPATIAL_DIMS, box, strict=True))),
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
    """Return a type that holds values of `dtype` and `fill`; masks stay bool."""
    if fill is None or dtype.kind not in "iu":
        return dtype
    bounds = np.iinfo(dtype)
    fits = float(fill).is_integer() and bounds.min <= fill <= bounds.max
    return dtype if fits else np.result_type(dtype, np.float32)


def _resample_volumes(
    volumes: npt.NDArray[Any],
    move: Move,
    order: int,
    fill: float | None,
    dtype: np.dtype[Any],
) -> npt.NDArray[Any]:
    """Resample each of `volumes` (…, z, y, x)."""
    labels = volumes.shape[:-3]
    result = np.empty((*labels, *move.new), dtype)
    outside = move.outside() if move.leaves() else None
    for index in np.ndindex(*labels):
        result[index] = resample_volume(volumes[index], move, order, dtype)
        if outside is not None:
            result[index][outside] = False if dtype.kind == "b" else fill
    return result
