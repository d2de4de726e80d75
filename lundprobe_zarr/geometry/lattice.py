"""Voxel lattices in the patient, and resampling between them: pure geometry and interpolation.

Values belong to voxel centres. A voxel extends half a spacing around its centre, so a volume ends
half a voxel beyond its outermost centres. The outermost values are extended to that edge. Beyond
it, values are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray, ras_to_lps, spacing

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

#: A voxel is mask if at least half of it is. Weights add up to a half except for rounding.
_HALF = 0.5 - 1e-6
#: Smallest and largest voxel size, mm: beyond, numbers of voxels or positions would overflow.
_SIZES = 1e-6, 1e6
#: Fraction of a voxel by which equal positions may differ by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel lattice: `affine` (4, 4), voxel (i, j, k) -> mm, RAS; `shape` (z, y, x)."""

    affine: FloatArray
    shape: Shape

    @property
    def spacing_mm(self) -> FloatArray:
        """Distance of neighbouring voxel centres along z, y, x (3,), mm."""
        return spacing(self.affine)[::-1].copy()

    def stepped(self, start: FloatArray, step: FloatArray, shape: Shape) -> Grid:
        """Return the lattice of every `step`-th voxel from `start` (both (z, y, x), voxels)."""
        move = np.diag([*np.asarray(step, dtype=np.float64)[::-1], 1.0])
        move[:3, 3] = np.asarray(start, dtype=np.float64)[::-1]
        return Grid(self.affine @ move, shape)

    def to_index(self, lps_zyx: FloatArray) -> FloatArray:
        """Convert positions (…, 3), (z, y, x), mm, LPS, to fractional voxel indices (z, y, x)."""
        inverse = np.linalg.inv(ras_to_lps(self.affine))
        return np.asarray((lps_zyx[..., ::-1] @ inverse[:3, :3].T + inverse[:3, 3])[..., ::-1])

    def touched(self, corners: FloatArray, margin_mm: float) -> tuple[Any, Any]:
        """Return first and end voxel (z, y, x) of the voxels that a box and its margin touch.

        `corners` are those of the box (8, 3), (z, y, x), mm, LPS. The voxels may lie outside.
        """
        places = self.to_index(corners) + 0.5
        margin = margin_mm / self.spacing_mm
        start = np.floor(places.min(axis=0) - margin + _ROUNDING).astype(int)
        stop = np.ceil(places.max(axis=0) + margin - _ROUNDING).astype(int)
        return start, stop


def respaced(grid: Grid, spacing_mm: float | Sequence[float]) -> Grid:
    """Return the grid with voxels of `spacing_mm` (z, y, x, or one for all) and the same centre.

    It has as many voxels as fit between the old grid's outer edges, and at least one along each
    axis. With the old spacing the grid is unchanged.
    """
    wanted = voxel_sizes(spacing_mm)
    old = np.array(grid.shape)
    ratio = wanted / grid.spacing_mm
    # Spacings in headers are float32, so equal ones can differ slightly.
    ratio = np.where(np.abs(ratio - 1) < _ROUNDING, 1.0, ratio)
    new = np.maximum(1, np.floor(old / ratio + _ROUNDING)).astype(int)
    z, y, x = new.tolist()
    moved = grid.stepped((old - 1) / 2 - (new - 1) / 2 * ratio, ratio, (z, y, x))
    # scaling the old spacing can miss the requested one in its last bit
    columns = grid.affine[:3, :3] / spacing(grid.affine) * wanted[::-1]
    moved.affine[:3, :3] = np.where(ratio[::-1] == 1, grid.affine[:3, :3], columns)
    return moved


def voxel_sizes(mm: float | Sequence[float], name: str = "spacing_mm") -> FloatArray:
    """Return a voxel size (z, y, x), or one number for all axes, as (3,), mm.

    Raises `UsageError`, with `name` as the argument's name, if it is not from 1e-6 to 1e6.
    """
    try:
        sizes = np.asarray(mm)
    except ValueError:  # of unequal lengths
        sizes = np.zeros(0)
    numbers = sizes.dtype.kind in "iuf" and sizes.shape in ((), (3,))  # no texts, no booleans
    if not numbers or not ((sizes >= _SIZES[0]) & (sizes <= _SIZES[1])).all():
        raise UsageError(
            f"{name} is {mm!r}",
            expected=f"positive millimetres, {_SIZES[0]:g} to {_SIZES[1]:g}, (z, y, x) or one "
            "number",
        )
    return np.array(np.broadcast_to(sizes, (3,)), np.float64)


@dataclass(frozen=True)
class Move:
    """Map from voxel indices (z, y, x) of a new grid to an old one: matrix @ new + offset."""

    matrix: FloatArray
    offset: FloatArray
    old: Shape
    new: Shape
    #: First and last position along each old axis that has a value, voxels.
    low: FloatArray
    high: FloatArray

    @classmethod
    def between(cls, old: Grid, new: Grid) -> Move:
        """Return the map that keeps every position in the patient."""
        full = np.linalg.inv(old.affine) @ new.affine
        matrix, offset = full[:3, :3][::-1, ::-1].copy(), full[:3, 3][::-1].copy()
        if np.all(np.abs(matrix - np.diag(np.diag(matrix))) * np.max(new.shape) < _ROUNDING):
            matrix = np.diag(np.diag(matrix))
        low, high = np.full(3, -0.5), np.array(old.shape) - 0.5
        return cls(matrix, offset, old.shape, new.shape, low - _ROUNDING, high + _ROUNDING)

    def corners(self) -> FloatArray:
        """Return the positions (8, 3) of the new grid's corner voxels in the old grid."""
        ends = np.array(list(product(*((0, n - 1) for n in self.new))))
        return np.asarray(ends @ self.matrix.T + self.offset)

    def leaves(self) -> bool:
        """Return whether any new voxel's centre lies outside the old volume."""
        corners = self.corners()
        return bool((corners < self.low).any() or (corners > self.high).any())

    def window(self, margin: int = 0) -> tuple[Box, Move]:
        """Return the box of the old volume that the new voxels need, and the map into that box."""
        corners, most = self.corners(), np.array(self.old)
        start = np.clip(np.floor(corners.min(axis=0)) - margin, 0, most - 1).astype(int)
        stop = np.clip(np.ceil(corners.max(axis=0)) + margin + 1, start + 1, most).astype(int)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        size = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
        moved = Move(
            self.matrix,
            self.offset - start,
            size,
            self.new,
            self.low - start,
            self.high - start,
        )
        return (z, y, x), moved

    def outside(self) -> npt.NDArray[np.bool_]:
        """Return which new voxels (z, y, x) have their centre outside the old volume."""
        result = np.zeros(self.new, dtype=bool)
        indices = np.ogrid[tuple(slice(n) for n in self.new)]
        for row, shift, low, high in zip(
            self.matrix, self.offset, self.low, self.high, strict=True
        ):
            position = shift + sum(f * i for f, i in zip(row, indices, strict=True) if f)
            result |= (position < low) | (position > high)
        return result


def resampled_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of resampled voxels whose stored type is `dtype`."""
    return dtype if dtype.kind == "b" else np.result_type(dtype, np.float32)


def resample_volume(
    volume: npt.NDArray[Any], move: Move, order: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Resample `volume` (z, y, x) from the old grid of `move` to the new one, as `dtype`.

    `order` is the order of the spline: 0 nearest, 1 linear. Beyond the outermost centres their
    values are extended. A boolean volume becomes True where the interpolated value is at least 0.5.
    """
    is_mask = dtype.kind == "b"
    kind = np.dtype(np.float32) if is_mask else dtype
    diagonal = np.diag(move.matrix)
    separable = np.array_equal(move.matrix, np.diag(diagonal))
    if separable and order == 1 and kind.kind == "f":
        moved = _linear(volume, diagonal, move, kind)
    else:
        values = volume.astype(kind) if is_mask else volume
        moved = _spline(values, diagonal if separable else move.matrix, move, order, kind)
    return moved >= _HALF if is_mask else moved


def _linear(
    volume: npt.NDArray[Any], steps: FloatArray, move: Move, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Interpolate along one axis after another: ten times as fast as all at once.

    The axis that shrinks most comes first. Positions at a voxel's centre take its exact value.
    """
    moved = volume
    for axis in sorted(range(3), key=lambda axis: move.new[axis] / move.old[axis]):
        last = move.old[axis] - 1
        positions = np.clip(move.offset[axis] + steps[axis] * np.arange(move.new[axis]), 0, last)
        centres = np.rint(positions)
        positions = np.where(np.abs(positions - centres) < _ROUNDING, centres, positions)
        below = np.floor(positions).astype(int)
        along = [-1 if a == axis else 1 for a in range(3)]
        weight = (positions - below).astype(dtype).reshape(along)
        above = np.minimum(below + 1, last)
        low, high = (moved.take(n, axis).astype(dtype, copy=False) for n in (below, above))
        low *= 1 - weight
        high *= weight
        moved = np.add(low, high, out=low)
    return moved


def _spline(
    volume: npt.NDArray[Any], matrix: FloatArray, move: Move, order: int, dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    # Imported here: opening a patient should not wait for scipy.
    from scipy.ndimage import affine_transform

    moved: npt.NDArray[Any] = affine_transform(
        volume,
        matrix,  # scipy is several times as fast with a diagonal (one dimension) as with a matrix
        move.offset,
        output_shape=move.new,
        output=dtype,
        order=order,
        mode="nearest",
    )
    return moved
