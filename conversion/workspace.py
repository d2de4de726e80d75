"""Memory for voxels, used again from file to file.

A patient's files add up to gigabytes of voxels; the system zeroes every page it hands out anew,
which costs as much as decompressing a mask. One workspace serves one patient.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.uint8]
#: Buffers worth keeping: masks, which come in numbers. Images and dose are few and large, and
#: keeping theirs would add to what measuring a mask needs.
_KEEP_BYTES = 1 << 28


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
        fitting = [b for b in self._free if b.size >= size]
        if fitting:
            buffer = min(fitting, key=lambda b: b.size)
            self._free = [b for b in self._free if b is not buffer]
        else:
            # A too small one would only lie idle. Pages of np.empty cost memory once written.
            self._free = self._free[1:]
            buffer = np.empty(size, np.uint8)
        self._taken.append(buffer)
        return buffer[:size]

    def release(self) -> None:
        """All buffers handed out may be used again; the largest are given back to the system."""
        kept = [b for b in (*self._free, *self._taken) if b.size <= _KEEP_BYTES]
        self._free = sorted(kept, key=lambda b: b.size)
        self._taken = []
