"""Memory for patches, used again once nobody holds the patch it was lent to.

The system zeroes whatever memory it hands out anew, page by page: for a patch of five megabytes
that takes a tenth of the time of decoding it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

#: Arrays of these sizes in bytes are lent: malloc keeps smaller ones itself, and larger ones would
#: be much to keep.
_LEAST, _MOST = 128 * 1024, 64 * 1024**2

#: Idle memory, what was given back last at the end; the oldest makes room. Of its methods only
#: those are used that are one step of the interpreter's, as memory comes back at any moment.
_IDLE: deque[npt.NDArray[np.uint8]] = deque(maxlen=16)


class _Loan:
    """What an array's memory belongs to; gone when the last array that looks at it is."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        if hasattr(self, "_memory"):  # else interrupted as it was made
            _IDLE.append(self._memory)


def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As `numpy.empty`: a writable array of its own, in C order, to be filled wholly."""
    size = _size(shape, dtype)
    if not _LEAST <= size <= _MOST:
        return np.empty(shape, dtype)
    memory = _idle(size)
    if memory is None:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Loan(memory)).view(dtype).reshape(shape)


def zeros(shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As `numpy.zeros`: a writable array of its own, in C order."""
    if not _LEAST <= _size(shape, dtype) <= _MOST:
        return np.zeros(shape, dtype)
    array = empty(shape, dtype)
    array.fill(0)
    return array


def _size(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return prod(map(int, shape)) * dtype.itemsize


def _idle(size: int) -> npt.NDArray[np.uint8] | None:
    """Idle memory of `size` bytes, if there is any; what nobody asks for is let go in time."""
    try:
        for _ in range(len(_IDLE)):
            memory = _IDLE.popleft()
            if memory.size == size:
                return memory
            _IDLE.append(memory)
        _IDLE.popleft()
    except IndexError:  # another thread took the last
        pass
    return None
