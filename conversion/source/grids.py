"""The voxel lattice that the files of a folder share."""

from __future__ import annotations

from dataclasses import dataclass

from lundprobe_zarr.errors import SourceError
from lundprobe_zarr.geometry.affine import SAME_GRID_MM, FloatArray, largest_shift


@dataclass(frozen=True)
class Grid:
    """A voxel lattice: shape (z, y, x), affine (4, 4), voxel (i, j, k) -> mm, RAS.

    `path` is the file that defines it; `unit` is the unit of lengths in that file's header.
    """

    shape: tuple[int, int, int]
    affine: FloatArray
    path: str
    unit: str


def require_same(grid: Grid, here: Grid, where: str) -> None:
    """Raise `SourceError` with `where` if a file's lattice differs from its folder's."""
    if grid.shape != here.shape:
        finding = f"{here.shape} voxels (z, y, x), not {grid.shape}"
    else:
        z, y, x = here.shape
        shift = largest_shift(grid.affine, here.affine, (x, y, z))
        if shift <= SAME_GRID_MM:
            return
        finding = f"its voxels are up to {shift:.4g} mm away from those of {grid.path}"
    if grid.unit != here.unit:
        finding += f" (lengths in {here.unit}, there in {grid.unit})"
    raise SourceError(
        str(finding),
        where=where,
        expected=f"the geometry of {grid.path}, within {SAME_GRID_MM:g} mm",
        remedy="fetch the patient again",
    )
