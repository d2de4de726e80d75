"""Cropping of labelled volumes by the tables, without reading a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.cohort import Cohort, Patient
from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.geometry.affine import FloatArray, index_to_lps
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.grid import (
    AnyLabelled,
    Home,
    Labelled,
    grid_of,
    home_of,
    over_arrays,
    over_volumes,
    require_volume,
    traceable,
    unplaced,
)
from lundprobe_zarr.labelled.resample import type_with
from lundprobe_zarr.labelled.tables import clinical_row
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS
from lundprobe_zarr.vocabulary.suggest import require_structure

Triple = Sequence[float]


@dataclass(frozen=True, eq=False)
class Region:
    """A box in patient coordinates, on the outer edges of voxels.

    It may be oblique. Cropping another grid to it keeps all voxels that it touches.

    Attributes
    ----------
    corners
        Corners (8, 3), z y x, mm, LPS.
    """

    corners: FloatArray

    @classmethod
    def of_voxels(cls, grid: Grid, start: npt.ArrayLike, stop: npt.ArrayLike) -> Region:
        """Return the box of some voxels of a grid.

        Parameters
        ----------
        grid
            The grid.
        start, stop
            First and end voxel (z, y, x; end exclusive).
        """
        ends = np.array([np.asarray(start) - 0.5, np.asarray(stop) - 0.5], dtype=np.float64)
        return cls(index_to_lps(grid.affine, _corners(*ends)))

    @classmethod
    def of_mm(cls, low: Triple, high: Triple) -> Region:
        """Return the box between two points, along the patient's axes.

        Parameters
        ----------
        low, high
            Opposite corners (z, y, x), mm, LPS.
        """
        return cls(_corners(np.asarray(low, np.float64), np.asarray(high, np.float64)))

    @property
    def low_mm(self) -> FloatArray:
        """Smallest z, y, x (3,), mm, LPS."""
        return np.asarray(self.corners.min(axis=0))

    @property
    def high_mm(self) -> FloatArray:
        """Largest z, y, x (3,), mm, LPS."""
        return np.asarray(self.corners.max(axis=0))

    @property
    def centre_mm(self) -> FloatArray:
        """Middle of the box (z, y, x), mm, LPS."""
        return np.asarray(self.corners.mean(axis=0))


#: Target of cropping: a structure's name, its row of the `structures` table, a region, or first
#: and end voxel (z, y, x; end exclusive) of the array.
Target: TypeAlias = str | Mapping[str, Any] | Region | tuple[Sequence[int], Sequence[int]]
#: Source of the tables that locate a structure.
Tables: TypeAlias = Patient | Cohort


def _corners(low: FloatArray, high: FloatArray) -> FloatArray:
    return np.array(list(product(*zip(low, high, strict=True))))


def region_of(data: AnyLabelled, target: Target, tables: Tables | None) -> Region:
    """Return the region of a `Target`; see `lp.crop`. Reads a table, but no voxels."""
    if isinstance(target, Region):
        return target
    if isinstance(target, str):
        return _region_of_structure(data, target, tables)
    if not isinstance(target, tuple | list):  # a mapping, or a pandas Series, which is not one
        return _region_of_row(data, dict(target))
    start, stop = np.asarray(target[0]), np.asarray(target[1])
    if start.shape != (3,) or stop.shape != (3,) or (start >= stop).any():
        raise UsageError(
            f"box {target!r}",
            expected=("first and end voxel, ((z, y, x), (z, y, x)), each end above the first"),
        )
    return Region.of_voxels(grid_of(data), start, stop)


def _region_of_structure(data: AnyLabelled, structure: str, tables: Tables | None) -> Region:
    require_structure(structure)
    if tables is None:
        raise UsageError(
            f"the location of {structure!r} without tables",
            expected=(
                f"the patient or a cohort as second argument, e.g. `crop({structure!r}, patient)`, "
                "or the structure's row"
            ),
        )
    home = _home(data)
    if home.patient_id is None or home.name not in ("mri", "sct"):
        raise UsageError(
            f"no table has bounding boxes on grid {home.name!r} of patient {home.patient_id!r}",
            expected="voxels of the mri or sct grid",
            remedy=(
                f"find the region there, with e.g. `patient.mri.lp.region({structure!r}, "
                "patient)`, and crop to it"
            ),
        )
    patient = tables if isinstance(tables, Patient) else tables[home.patient_id]
    return _region_of_row(data, clinical_row(patient, structure, home.name))


def _home(data: AnyLabelled) -> Home:
    home = home_of(data)
    if home is None:
        raise UsageError(
            "these voxels have no attributes that name the patient (arithmetic drops them)",
            remedy=(
                "find the region before arithmetic, e.g. `patient.mri.lp.region(…)`, and crop to it"
            ),
        )
    return home


def _region_of_row(data: AnyLabelled, row: Mapping[str, Any]) -> Region:
    """Return the region of a row of the `structures` table (voxels of a stored grid)."""
    home = _home(data)
    for column, known in (("patient_id", home.patient_id), ("grid", home.name)):
        if known is not None and row.get(column, known) != known:
            raise UsageError(
                f"the row's {column} is {row[column]!r}",
                expected=f"{known!r}, as for these voxels",
                remedy="pass that row, or a region: `patient.mri.lp.region(row)`",
            )
    start, stop = (row[column] for column in ("bbox_start", "bbox_stop"))
    if np.ndim(start) != 1 or np.ndim(stop) != 1:
        raise MissingStructureError(
            f"mask {row.get('structure')!r} of patient {row.get('patient_id')!r} "
            "is empty, it has no bounding box",
            remedy="choose another structure",
        )
    return Region.of_voxels(home.grid, start, stop)


def crop_to(data: Labelled, region: Region, margin_mm: float, fill: float | None) -> Labelled:
    """Return `data` around a region, clipped to the volume, or padded with `fill`."""
    if not isinstance(margin_mm, Real) or not margin_mm >= 0:
        raise UsageError(
            f"margin_mm is {margin_mm!r}", expected="one number of millimetres, 0 or more"
        )
    grid = grid_of(require_volume(data))
    start, stop = grid.touched(region.corners, margin_mm)
    first, last = np.maximum(start, 0), np.minimum(stop, grid.shape)
    if (first >= last).any():
        raise UsageError(
            f"the region, {region.low_mm} to {region.high_mm} mm (z, y, x; "
            f"LPS), lies outside these {grid.shape} voxels",
            expected="an overlap",
            remedy="check whether the array was cropped before",
        )
    box = {d: slice(int(a), int(b)) for d, a, b in zip(SPATIAL_DIMS, first, last, strict=True)}
    cropped = traceable(data, grid).isel(box)
    if fill is None or (np.array_equal(first, start) and np.array_equal(last, stop)):
        return over_arrays(cropped, _evenly_chunked)
    z, y, x = (stop - start).tolist()
    around = grid.stepped(start.astype(np.float64), np.ones(3), (z, y, x))
    widths = dict(zip(SPATIAL_DIMS, zip(first - start, stop - last, strict=True), strict=True))
    padded = over_volumes(cropped, partial(_padded, widths=widths, fill=fill), around)
    return over_arrays(padded, _evenly_chunked)


def _evenly_chunked(data: xr.DataArray) -> xr.DataArray:
    """Return the array with even dask chunks (the last may be shorter), as saving to Zarr needs.

    Uneven chunks are merged, not split, so the box is still read at once.
    """
    uneven = {
        dim: -1
        for dim, lengths in data.chunksizes.items()
        if len(set(lengths[:-1])) > 1 or lengths[-1] > lengths[0]
    }
    return data.chunk(uneven) if uneven else data


def _padded(data: xr.DataArray, widths: Mapping[str, tuple[int, int]], fill: float) -> xr.DataArray:
    value: Any = False if data.dtype == bool else fill
    data = unplaced(data).astype(type_with(data.dtype, fill), keep_attrs=True)
    return data.pad(widths, constant_values=value, keep_attrs=True)
