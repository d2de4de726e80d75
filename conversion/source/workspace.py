"""A buffer pool for voxels, reused from file to file.

A patient's files are gigabytes of voxels. The system zeroes every newly allocated page, which takes
longer than decompressing a mask. A workspace serves one patient at a time, and is reused for the
next patient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.uint8]

#: Alignment of buffers, bytes: a cache line, enough for every type.
_ALIGNED = 64


def aligned(size: int) -> int:
    """Round `size` up to the size of a buffer in a workspace."""
    return -(-size // _ALIGNED) * _ALIGNED


class Workspace:
    """A pool of byte buffers in one block of memory; `release` frees all of them at once.

    After `release`, buffers are overwritten, so release only when an array is written. The block
    has the size of the largest reservation.
    """

    def __init__(self) -> None:
        self._block: Buffer = np.empty(0, np.uint8)
        self._taken: list[tuple[int, Buffer]] = []  # (start, buffer), sorted by start

    def reserve(self, size: int) -> None:
        """Make the block at least `size` bytes if no buffer is in use; may raise `MemoryError`."""
        if size > self._block.size and not self._taken:
            self._block = np.empty(0, np.uint8)  # frees the old block first
            self._block = np.empty(size, np.uint8)

    def take(self, size: int) -> Buffer:
        """Return a buffer of `size` bytes, uint8, contents undefined; may raise `MemoryError`."""
        start = 0
        for position, (taken, buffer) in enumerate(self._taken):
            if start + size <= taken:
                return self._hand_out(position, start, size)
            start = taken + aligned(buffer.size)
        if start + size <= self._block.size:
            return self._hand_out(len(self._taken), start, size)
        return np.empty(size, np.uint8)

    def _hand_out(self, position: int, start: int, size: int) -> Buffer:
        buffer = self._block[start : start + size]
        self._taken.insert(position, (start, buffer))
        return buffer

    def release(self, but: npt.NDArray[Any] | None = None) -> None:
        """Free all buffers except the one that contains `but`."""
        self._taken = [
            (start, buffer)
            for start, buffer in self._taken
            if but is not None and np.may_share_memory(buffer, but)
        ]
