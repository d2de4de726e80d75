"""A grid as DICOM says it: planes of pixels, upright on the axis through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import (
    SAME_GRID_MM,
    FloatArray,
    largest_shift,
    ras_to_lps,
    spacing,
)
from lundprobe_zarr.geometry.lattice import Grid


@dataclass(frozen=True, eq=False)
class Planes:
    """The planes of a grid, in the order in which they follow along their normal, mm, LPS.

    `positions` (planes, 3) are the centres of the first pixels. A column's index grows along
    `along_row`, a row's along `along_column` (unit vectors); `row_mm` is the distance of
    neighbouring rows, `column_mm` that of columns, `step_mm` that of planes. `flipped` is whether
    planes come in the opposite order of the stored volume's.
    """

    shape: tuple[int, int, int]
    positions: FloatArray
    along_row: FloatArray
    along_column: FloatArray
    row_mm: float
    column_mm: float
    step_mm: float
    flipped: bool

    def ordered(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a stored volume (z, y, x) with its planes in this order."""
        return volume[::-1] if self.flipped else volume

    def number(self, z: int) -> int:
        """Return the plane's number, from 0, of a stored volume's index z."""
        return self.shape[0] - 1 - z if self.flipped else z

    def points(self, plane: int, places: FloatArray) -> FloatArray:
        """Return places (n, 2), (row, column), of a plane as positions (n, 3), x, y, z."""
        rows, columns = places.T
        moved = np.outer(rows * self.row_mm, self.along_column)
        moved += np.outer(columns * self.column_mm, self.along_row)
        return np.asarray(moved + self.positions[plane])

    @property
    def orientation(self) -> list[float]:
        """Direction cosines: Image Orientation (Patient)."""
        return [*self.along_row.tolist(), *self.along_column.tolist()]


def planes_of(grid: Grid, name: str) -> Planes:
    """Return the planes of a grid called `name`.

    Raises `UsageError` if its axes are not at right angles: images in DICOM have no other, and a
    voxel's centre would move by more than `SAME_GRID_MM`.
    """
    lps = ras_to_lps(grid.affine)
    column_mm, row_mm, step_mm = spacing(lps)
    i, j, k = (lps[:3, :3] / (column_mm, row_mm, step_mm)).T
    normal = np.cross(i, j)
    flipped = bool(normal @ k < 0)
    upright = lps.copy()
    upright[:3, :3] = np.stack(
        [
            i * column_mm,
            _at_right_angles(j, i) * row_mm,
            normal / np.linalg.norm(normal) * (-step_mm if flipped else step_mm),
        ],
        axis=1,
    )
    if (moved := largest_shift(lps, upright, grid.shape[::-1])) > SAME_GRID_MM:
        raise UsageError(
            f"the axes of the grid {name} are not at right angles: without the shear voxels would "
            f"move by up to {moved:.3g} mm",
            expected=f"at most {SAME_GRID_MM} mm, as DICOM cannot say it",
            remedy="export NIfTI files, which can",
        )
    numbers = np.arange(grid.shape[0])[:: -1 if flipped else 1]
    positions = lps[:3, 3] + np.outer(numbers, lps[:3, 2])
    sizes = float(row_mm), float(column_mm), float(step_mm)
    return Planes(grid.shape, positions, i, j, *sizes, flipped)


def _at_right_angles(vector: FloatArray, to: FloatArray) -> FloatArray:
    rest = vector - (vector @ to) * to
    return np.asarray(rest / np.linalg.norm(rest))
