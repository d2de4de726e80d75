"""Which part of a structure the planning dose grid covers: there alone its dose is known.

A voxel is covered if its centre lies between the outermost voxel centres of the planning grid,
edges included, within `SAME_GRID_MM`: that is what linear interpolation of the planned dose
supports. The half voxel beyond the outermost centres does not count: there an interpolator carries
on the outermost dose or writes 0, depending on the tool, and neither was planned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import SAME_GRID_MM
from lundprobe_zarr.geometry.lattice import Box, Grid, Move

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Covered:
    """The covered voxels of a mask: `part` (z, y, x), bool, is what lies in `box` of its grid."""

    box: Box
    part: Mask

    @property
    def voxels(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.part))


def covered(mask: Mask, box: Box, grid: Grid, planned: Grid) -> Covered:
    """The voxels of `mask` (z, y, x), all of which lie in `box` of `grid`, that `planned` covers.

    The grids may differ in any way, oblique ones too. `part` is a view of `mask` unless the
    grids' axes differ in direction and the structure leaves the planning grid.
    """
    start = np.array([s.start for s in box])
    z, y, x = (s.stop - s.start for s in box)
    near = grid.stepped(start, np.ones(3), (z, y, x))
    tolerance = SAME_GRID_MM / planned.spacing_mm
    most = np.array(planned.shape) - 1
    move = replace(Move.between(planned, near), low=-tolerance, high=most + tolerance)
    if not move.leaves():
        return Covered(box, mask[box])
    if np.array_equal(move.matrix, np.diag(np.diag(move.matrix))):
        inside = _inside_along_axes(move, start)
        return Covered(inside, mask[inside])
    part = mask[box].copy()
    for k, plane in enumerate(part):  # one at a time: places are 8 bytes a voxel
        offset = move.offset + move.matrix[:, 0] * k
        plane &= ~replace(move, offset=offset, new=(1, y, x)).outside()[0]
    return Covered(box, part)


def _inside_along_axes(move: Move, start: npt.NDArray[np.int64]) -> Box:
    """The covered box of voxels, moved by `start`, where axes are parallel; may be empty."""
    slices = []
    for axis, first in enumerate(start.tolist()):
        place = move.offset[axis] + move.matrix[axis, axis] * np.arange(move.new[axis])
        there = np.flatnonzero((place >= move.low[axis]) & (place <= move.high[axis]))
        slices.append(
            slice(first + int(there[0]), first + int(there[-1]) + 1)
            if len(there)
            else slice(first, first)
        )
    z, y, x = slices
    return z, y, x
