"""An outline with holes as one closed line.

A structure set has no holes. Some readers fill every contour of a plane and unite them, others
take a voxel as inside if an odd number of contours hold it. One line that goes to each hole, around
it and back the same way reads alike in both.
"""

from __future__ import annotations

import numpy as np

from lundprobe_zarr.figures.contours import Places, Polygon


def joined(polygon: Polygon) -> Places:
    """Return the line (n, 2), places (row, column), not repeating its first, around a polygon.

    `polygon` outlines voxels: see `figures.contours.mask_polygons`. The way to a hole runs along a
    line halfway between two rows of voxel centres, so that it passes through none of them.
    """
    outline, *holes = polygon.rings
    for hole in sorted((_from_top(h) for h in holes), key=lambda ring: tuple(ring[0])):
        outline = _spliced(outline, hole)
    return outline[:-1]


def _from_top(ring: Places) -> Places:
    """Return the ring from its place of the lowest row and then column on: a row of a half."""
    open_ring = ring[:-1]
    first = int(np.lexsort((open_ring[:, 1], open_ring[:, 0]))[0])
    turned = np.roll(open_ring, -first, axis=0)
    return np.concatenate([turned, turned[:1]])


def _spliced(outline: Places, hole: Places) -> Places:
    """Return the outline with a way to the hole's first place, around the hole and back."""
    number, place = _left_of(outline, hole[0])
    way = [outline[: number + 1], place[None], hole, place[None], outline[number + 1 :]]
    points = np.concatenate(way)
    moves = np.any(np.diff(points, axis=0) != 0, axis=1)
    kept: Places = points[np.concatenate([[True], moves])]
    return kept


def _left_of(outline: Places, place: Places) -> tuple[int, Places]:
    """Return where the outline comes next to the left of a place: number of its piece, place."""
    (row, column), (r0, c0), (r1, c1) = place, outline[:-1].T, outline[1:].T
    level = r0 == r1
    share = (row - r0) / np.where(level, 1.0, r1 - r0)
    end = np.where(np.maximum(c0, c1) < column, np.maximum(c0, c1), np.minimum(c0, c1))
    columns = np.where(level, end, c0 + share * (c1 - c0))
    meets = (np.minimum(r0, r1) <= row) & (row <= np.maximum(r0, r1)) & (columns < column)
    number = int(np.argmax(np.where(meets, columns, -np.inf)))
    return number, np.array([row, columns[number]])
