"""Contours of planes: outlines of masks with their holes, and lines of equal value.

Places are fractional (row, column) indices of voxel centres. Lines are found by marching squares,
with linear interpolation between neighbouring voxel centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from contourpy import FillType, LineType, contour_generator

Places = npt.NDArray[np.float64]

#: Level between a voxel outside (0) and one inside (1).
MASK_LEVEL = 0.5
#: Above every mask.
_ABOVE = 2.0


@dataclass(frozen=True)
class Polygon:
    """A connected outline: its outer ring and those of its holes.

    Each ring is (n, 2) places; the last is the first again.
    """

    rings: tuple[Places, ...]


def mask_polygons(mask: npt.NDArray[np.bool_], start: tuple[int, int] = (0, 0)) -> list[Polygon]:
    """Outline a plane of a mask (rows, columns), of which `start` is the first place.

    Lines pass halfway between a voxel inside and its neighbour outside, so a voxel is inside if its
    centre is inside an odd number of rings. Beyond the plane all is outside.
    """
    numbers = np.pad(mask.astype(np.float64), 1)
    found = contour_generator(z=numbers, fill_type=FillType.OuterOffset).filled(MASK_LEVEL, _ABOVE)
    shift = np.array(start) - 1.0
    return [
        Polygon(tuple(_without_midpoints(points[a:b, ::-1] + shift) for a, b in pairwise(offsets)))
        for points, offsets in zip(*found, strict=True)
    ]


def _without_midpoints(ring: Places) -> Places:
    """Return a ring without the places that lie straight between their neighbours.

    Places of masks are multiples of a half, so this is exact.
    """
    steps = np.diff(ring, axis=0)
    before = np.roll(steps, 1, axis=0)  # the step to each place; a ring begins where it ends
    turns = before[:, 0] * steps[:, 1] != before[:, 1] * steps[:, 0]
    kept = ring[:-1][turns]
    return np.concatenate([kept, kept[:1]])


def level_lines(
    values: npt.NDArray[Any], level: float, start: tuple[int, int] = (0, 0)
) -> list[Places]:
    """Return the lines (n, 2) along which a plane (rows, columns) has the value `level`.

    A closed line ends at its first place; an open one ends at the plane's border, or at values that
    are no numbers. `start` is the first place of the plane.
    """
    there = values >= level
    if not there.any() or min(values.shape) < 2:
        return []
    rows, columns = (_around(np.logical_or.reduce(there, axis=axis)) for axis in (1, 0))
    numbers = np.ma.masked_invalid(values[rows, columns].astype(np.float64))
    lines = contour_generator(z=numbers, line_type=LineType.Separate).lines(level)
    shift = np.array([start[0] + rows.start, start[1] + columns.start])
    return [np.asarray(line)[:, ::-1] + shift for line in lines]


def _around(flags: npt.NDArray[np.bool_]) -> slice:
    """Return the range of the flags that are set, with a neighbour on each side."""
    there = np.flatnonzero(flags)
    start, stop = max(0, int(there[0]) - 1), min(len(flags), int(there[-1]) + 2)
    return slice(start, stop)
