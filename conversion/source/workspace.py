"""Memory for voxels, used again from file to file.

A patient's files add up to gigabytes of voxels; the system zeroes every page it hands out anew,
which costs more than decompressing a mask. One workspace serves one patient at a time, and
the next ones after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.uint8]

#: Starts of buffers are multiples of this: a cache line, and any type's alignment.
_ALIGNED = 64


def aligned(size: int) -> int:
    """`size` rounded up to what a buffer of it takes up in a workspace."""
    return -(-size // _ALIGNED) * _ALIGNED


class Workspace:
    """Hands out byte buffers of one block of memory; `release` takes back all of them at once.

    Whatever was read into a buffer is overwritten after `release`: release only once an array
    is written. The block is as large as the most that was reserved at once and no larger.
    """

    def __init__(self) -> None:
        self._block: Buffer = np.empty(0, np.uint8)
        self._taken: list[tuple[int, Buffer]] = []  # with their starts, in their order

    def reserve(self, size: int) -> None:
        """Have `size` bytes for what is taken next, if nothing is; raises `MemoryError`."""
        if size > self._block.size and not self._taken:
            self._block = np.empty(0, np.uint8)  # the system has it back first
            self._block = np.empty(size, np.uint8)

    def take(self, size: int) -> Buffer:
        """A buffer of `size` bytes, uint8, contents undefined; raises `MemoryError`."""
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
        """All buffers handed out may be used again, except the one that `but` lies in."""
        self._taken = [
            (start, buffer)
            for start, buffer in self._taken
            if but is not None and np.may_share_memory(buffer, but)
        ]
