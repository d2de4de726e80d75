"""Where masks lie, what tells them apart, how far one reaches beyond another, what lies in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import FloatArray, ras_to_lps
from lundprobe_zarr.geometry.lattice import Box

Mask = npt.NDArray[np.bool_]


def bounding_box(mask: Mask) -> Box | None:
    """Return the smallest box that holds every voxel of a mask (z, y, x); None if it has none."""
    planes = np.logical_or.reduce(mask, axis=2)
    if not planes.any():
        return None
    z = _extent(np.logical_or.reduce(planes, axis=1))
    y = _extent(np.logical_or.reduce(planes, axis=0))
    return z, y, _extent(np.logical_or.reduce(mask[z, y], axis=(0, 1)))


def _extent(flags: Mask) -> slice:
    there = np.flatnonzero(flags)
    return slice(int(there[0]), int(there[-1]) + 1)


def mask_sha256(mask: Mask, box: Box | None) -> str:
    """SHA-256 of a mask (z, y, x) whose bounding box is `box`: equal for equal masks alone.

    Hashed are nine little-endian int64 (the mask's shape, the box's start, its stop; zeros
    without a voxel), then each slice of the box with `numpy.packbits`.
    """
    bounds = [(s.start, s.stop) for s in box] if box is not None else [(0, 0)] * 3
    numbers = [*mask.shape, *(a for a, _ in bounds), *(b for _, b in bounds)]
    found = hashlib.sha256(np.array(numbers, "<i8").tobytes())
    for plane in mask[box] if box is not None else ():
        found.update(np.packbits(plane).tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Outline:
    """A mask in its bounding box, kept for `margin_mm`: `part` (z, y, x), bool."""

    box: Box
    part: Mask

    @classmethod
    def of(cls, mask: Mask, box: Box) -> Outline:
        """A copy of the mask in its box."""
        return cls(box, mask[box].copy())

    def border(self) -> npt.NDArray[np.int64]:
        """Indices (n, 3), z y x, of the voxels that share a face with one outside the mask.

        What lies outside the grid is outside the mask.
        """
        padded = np.pad(self.part, 1)
        inner = padded[1:-1, 1:-1, 1:-1].copy()
        for axis in range(3):
            for shift in (0, 2):
                window = [slice(1, -1)] * 3
                window[axis] = slice(shift, shift + self.part.shape[axis])
                inner &= padded[tuple(window)]
        border: npt.NDArray[np.int64] = np.argwhere(self.part & ~inner)
        start: npt.NDArray[np.int64] = np.array([s.start for s in self.box], np.int64)
        return np.add(border, start, dtype=np.int64)

    def holds(self, zyx: npt.NDArray[np.int64]) -> Mask:
        """Which of the voxels (n, 3), z y x, are in the mask."""
        local = zyx - [s.start for s in self.box]
        near = ((local >= 0) & (local < self.part.shape)).all(axis=1)
        found = np.zeros(len(zyx), bool)
        found[near] = self.part[tuple(local[near].T)]
        return found

    def beyond(self, holder: Mask) -> int:
        """How many of its voxels are not in `holder`, a mask (z, y, x) of the same grid."""
        return int(np.count_nonzero(self.part & ~holder[self.box]))


def points_inside(mask: Mask, affine: FloatArray, points: FloatArray) -> int:
    """How many of `points` (n, 3), x y z in mm, LPS, lie in a voxel of `mask` (z, y, x).

    `affine` (4, 4), voxel (i, j, k) -> mm, RAS, is that of the mask. A point belongs to the voxel
    whose centre is nearest along each axis of the grid; outside the grid it is in none.
    """
    to_index = np.linalg.inv(ras_to_lps(affine))
    zyx = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(np.int64)[:, ::-1]
    there = zyx[((zyx >= 0) & (zyx < mask.shape)).all(axis=1)]
    return int(np.count_nonzero(mask[tuple(there.T)]))


def margin_mm(target: Outline, expanded: Outline, affine: FloatArray) -> tuple[float, float]:
    """Smallest and largest distance, mm, from the border of `expanded` to `target`.

    Distances are between voxel centres: of every voxel of `expanded` that shares a face with one
    outside it, to the nearest voxel of `target`; 0 where it is in `target` itself. The smallest
    is 0, too, where a voxel of `target` is not in `expanded`. An expansion by r mm so has a
    largest distance of r at most and a smallest of r less a voxel's diagonal at least.
    `affine` (4, 4), voxel (i, j, k) -> mm, is that of both.

    Looks at border voxels alone, through a k-d tree: memory and time grow with the surfaces.
    """
    from scipy.spatial import cKDTree  # here: reading a dataset should not wait for scipy

    border, inner = expanded.border(), target.border()
    beyond = border[~target.holds(border)]
    to_mm = np.asarray(affine)[:3, :3][:, ::-1].T  # of indices z, y, x
    distances = np.zeros(1)
    if len(beyond):
        distances, _ = cKDTree(inner @ to_mm).query(beyond @ to_mm)
    touches = len(beyond) < len(border) or not expanded.holds(inner).all()
    return 0.0 if touches else float(distances.min()), float(distances.max())
