"""Masks cut to their boxes, so that all of a patient's fit in memory at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """The voxels of a mask (z, y, x) within its box; a mask without voxels has an empty box."""

    start: tuple[int, int, int]
    voxels: Mask

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The box in the whole volume."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.voxels.shape, strict=True))
        return z, y, x


def cut(mask: npt.NDArray[Any]) -> Cut:
    """Return the smallest cut that holds all voxels of a mask."""
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(planes):
        return Cut((0, 0, 0), np.zeros((0, 0, 0), bool))
    part = mask[planes[0] : planes[-1] + 1]
    rows = np.flatnonzero(part.any(axis=(0, 2)))
    columns = np.flatnonzero(part.any(axis=(0, 1)))
    part = part[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cut((int(planes[0]), int(rows[0]), int(columns[0])), part.astype(bool))


def ordered(found: Cut, planes: int, flipped: bool) -> Cut:
    """Return a cut as it lies with the planes of its volume in the opposite order, if `flipped`."""
    if not flipped:
        return found
    (z, y, x), depth = found.start, len(found.voxels)
    return Cut((planes - z - depth, y, x), found.voxels[::-1])
