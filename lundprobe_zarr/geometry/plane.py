"""Planes of a voxel grid in the patient: where their voxels lie, and which one is nearest.

A plane is all voxels with one index along one array axis (z, y or x). On an oblique grid it is
oblique too: positions come from the grid's affine. Nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray, is_aligned, ras_to_lps
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS

#: How positions become voxels, for those who read values at a point.
NEAREST_RULE = (
    "nearest voxel: index = floor(i + 0.5) of the fractional index i along each array axis; "
    "outside where i < -0.5 or i >= n - 0.5"
)

#: Positions further off than this, mm, lie outside any grid; with larger numbers floats overflow.
_FAR_MM = 1e9


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane of a grid, or every `stride`-th voxel of a part of it.

    Attributes
    ----------
    axis, index : int
        Array axis (0 is z, 1 is y, 2 is x) and index along it.
    origin_mm : numpy.ndarray
        Centre (3,) of its first voxel as (x, y, z), mm, LPS.
    row_mm, column_mm : numpy.ndarray
        Steps (3,) from one row, and from one column, to the next, (x, y, z), mm, LPS.
    """

    axis: int
    index: int
    origin_mm: FloatArray
    row_mm: FloatArray
    column_mm: FloatArray

    def points(self, places: npt.ArrayLike) -> FloatArray:
        """Convert places (n, 2), fractional (row, column), to points (n, 3), (x, y, z), mm, LPS."""
        steps = np.stack([self.row_mm, self.column_mm])
        return np.asarray(self.origin_mm + np.asarray(places, dtype=np.float64) @ steps)


def axis_number(name: str) -> int:
    """Return the array axis of `z`, `y` or `x`. Raises `UsageError` for another name."""
    if name not in SPATIAL_DIMS:
        raise UsageError(f"axis {name!r}", expected="z, y or x, an axis of the array")
    return SPATIAL_DIMS.index(name)


def in_plane(axis: int) -> tuple[int, int]:
    """Return the array axes of the rows and of the columns of a plane across `axis`."""
    rows, columns = (a for a in range(3) if a != axis)
    return rows, columns


def plane_of(
    grid: Grid, axis: int, index: int, start: Sequence[int] = (0, 0), stride: int = 1
) -> Plane:
    """Return a plane of a grid, from voxel `start` (row, column) on, every `stride`-th voxel."""
    lps = ras_to_lps(grid.affine)
    first = np.zeros(3)
    first[axis] = index
    for other, at in zip(in_plane(axis), start, strict=True):
        first[other] = at
    rows, columns = in_plane(axis)
    return Plane(
        axis,
        index,
        lps[:3, :3] @ first[::-1] + lps[:3, 3],
        lps[:3, 2 - rows] * stride,
        lps[:3, 2 - columns] * stride,
    )


def nearest_voxel(grid: Grid, point_mm: npt.ArrayLike) -> tuple[int, int, int] | None:
    """Return the voxel (z, y, x) in which a point lies; None if it lies outside the grid.

    `point_mm` is (x, y, z), mm, LPS. See `NEAREST_RULE`.
    """
    place = grid.to_index(_near(point_mm)[::-1])
    z, y, x = np.floor(place + 0.5).astype(int).tolist()
    inside = all(0 <= i < n for i, n in zip((z, y, x), grid.shape, strict=True))
    return (z, y, x) if inside else None


def nearest_plane(grid: Grid, axis: int, at_mm: Sequence[float]) -> int:
    """Return the index along an array axis of the plane nearest to a position.

    Parameters
    ----------
    grid : Grid
        The grid.
    axis : int
        Array axis across the plane.
    at_mm : sequence of float
        A point (x, y, z), mm, LPS; or, on a grid along the patient's axes, one coordinate.

    Raises
    ------
    UsageError
        If the position lies outside the grid, or one coordinate is given for an oblique grid.
    """
    name = SPATIAL_DIMS[axis]
    if len(at_mm) not in (1, 3):
        raise UsageError(f"a position of {len(at_mm)} numbers", expected="one, or x,y,z in mm")
    if len(at_mm) == 1 and not is_aligned(grid.affine):
        raise UsageError(
            f"one coordinate along {name} on an oblique grid, whose planes have no single one",
            expected="a point x,y,z in mm",
            remedy="give the index n, or the point",
        )
    point = _near(at_mm)
    if len(at_mm) == 1:
        coordinate, point = point[0], ras_to_lps(grid.affine)[:3, 3].copy()
        point[2 - axis] = coordinate
    place = float(grid.to_index(point[::-1])[axis])
    most = grid.shape[axis]
    if not -0.5 <= place < most - 0.5:
        raise UsageError(
            f"{_listed(at_mm)} mm lies outside the grid along {name}",
            expected=_extent(grid, axis)
            if len(at_mm) == 1
            else f"a point within its {most} planes",
        )
    return int(np.floor(place + 0.5))


def _near(point_mm: npt.ArrayLike) -> FloatArray:
    return np.clip(np.asarray(point_mm, dtype=np.float64), -_FAR_MM, _FAR_MM)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _extent(grid: Grid, axis: int) -> str:
    lps: npt.NDArray[Any] = ras_to_lps(grid.affine)
    step = lps[2 - axis, 2 - axis]
    first = lps[2 - axis, 3]
    ends = sorted((first - step / 2, first + step * (grid.shape[axis] - 0.5)))
    return f"{ends[0]:.2f} to {ends[1]:.2f} mm"
