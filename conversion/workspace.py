"""Memory for voxels, used again from file to file.

A patient's files add up to gigabytes of voxels; the system zeroes every page it hands out anew,
which costs as much as decompressing a mask. One workspace serves one patient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.uint8]


class Workspace:
    """Hands out byte buffers; `release` takes back all of them at once.

    Whatever was read into a buffer is overwritten after `release`: release only once an array
    is written. Memory grows to what the largest array needs at once and no further.
    """

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self._taken: list[Buffer] = []

    def take(self, size: int) -> Buffer:
        """A buffer of `size` bytes, uint8, contents undefined; raises `MemoryError`."""
        # More than twice as large would be wasted: then the system gets it back for other uses.
        fitting = [b for b in self._free if size <= b.size < 2 * size]
        if fitting:
            buffer = min(fitting, key=lambda b: b.size)
            self._free = [b for b in self._free if b is not buffer]
        else:
            # Files come in runs of one size: what served the last run would only lie idle.
            self._free = []
            buffer = np.empty(size, np.uint8)
        self._taken.append(buffer)
        return buffer[:size]

    def release(self, but: npt.NDArray[Any] | None = None) -> None:
        """All buffers handed out may be used again, except the one that `but` lies in."""
        held = [b for b in self._taken if but is not None and np.may_share_memory(b, but)]
        self._free += [b for b in self._taken if not any(b is h for h in held)]
        self._taken = held
