"""Turn an array so that it has the axes of a grid, if both describe the same lattice.

Programs write the voxels of one lattice in different orders: axes exchanged, or counted from the
other end. Such an array is turned exactly, by exchanging and reversing axes. One of another lattice
is never resampled here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import SAME_GRID_MM, FloatArray, largest_shift
from lundprobe_zarr.geometry.lattice import Grid


def turned(values: npt.NDArray[Any], affine: npt.ArrayLike, grid: Grid) -> npt.NDArray[Any] | None:
    """Return an array as (z, y, x) of a grid; None if it is of another lattice.

    `values` are (i, j, k), `affine` (4, 4) maps them to mm, RAS. Every voxel centre has to be
    within 0.001 mm (`SAME_GRID_MM`) of one of the grid's. The result is a view.
    """
    own = np.asarray(affine, dtype=np.float64)
    if values.ndim != 3 or abs(np.linalg.det(own[:3, :3])) < 1e-12:
        return None
    exact = _steps(np.linalg.inv(grid.affine) @ own)
    if exact is None or largest_shift(own, grid.affine @ exact, values.shape) > SAME_GRID_MM:
        return None
    matrix, start = exact[:3, :3], exact[:3, 3]
    axes = np.abs(matrix).argmax(axis=1)  # the array's axis along each of the grid's i, j, k
    found = values.transpose(axes)
    if found.shape != grid.shape[::-1]:
        return None
    for axis, (of, first) in enumerate(zip(axes, start, strict=True)):
        if matrix[axis, of] < 0:
            found = np.flip(found, axis)
            first -= found.shape[axis] - 1
        if first != 0:
            return None
    return found.transpose()


def _steps(move: FloatArray) -> FloatArray | None:
    """Return a map of voxels as whole steps along exchanged axes; None if it is no such map."""
    exact = np.rint(move)
    steps = np.abs(exact[:3, :3])
    one_each = (steps.sum(axis=0) == 1).all() and (steps.sum(axis=1) == 1).all()
    return exact if one_each else None
