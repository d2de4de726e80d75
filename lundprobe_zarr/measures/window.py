"""The values of an image to show as black and white where it has no unit to choose them by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.lattice import Box

#: Slices in the middle of a volume that are looked at, and of each the voxels: every fourth.
_SLICES, _EVERY = 8, 4
#: Percentiles shown as black and white. Chosen: a hundredth of the voxels saturates at either end.
_PERCENTILES = (1.0, 99.0)


def middle_slices(shape: Sequence[int]) -> Box:
    """Return the box of the slices of a volume (z, y, x) that `display_window` looks at."""
    first = max(0, (shape[0] - _SLICES) // 2)
    return slice(first, min(shape[0], first + _SLICES)), slice(0, shape[1]), slice(0, shape[2])


def display_window(slices: npt.NDArray[Any]) -> tuple[float, float] | None:
    """Return the 1st and 99th percentile of some slices (z, y, x); None if no value is finite.

    They are values of voxels, so that the result does not depend on the type that holds them.
    """
    values = slices[:, ::_EVERY, ::_EVERY]
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    start, end = np.percentile(values, _PERCENTILES, method="nearest")
    return float(start), float(end)
