"""As many threads decode as there are cores, however many of them wait for a server.

More would only take turns: each has its chunk pushed out of the cache by the next one's.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.store.shard import ShardCodec

_SCRATCH = threading.local()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class _Slots:
    """A semaphore for the whole process; a forked child begins with all of them free."""

    def __init__(self) -> None:
        self.free = threading.Semaphore(cores())


_SLOTS = _Slots()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SLOTS.__init__)  # type: ignore[misc]


def decoded(codec: ShardCodec, data: bytes | memoryview, where: object) -> npt.NDArray[Any]:
    """A chunk, in its full shape, good until this thread decodes the next one of its kind.

    Raises `DamagedStoreError`, naming `where`, as `ShardCodec.decode_chunk` does.
    """
    with _SLOTS.free:
        return codec.decode_chunk(data, where, _scratch(codec))


def _scratch(codec: ShardCodec) -> npt.NDArray[Any]:
    """An array for one chunk, of this thread's: new memory for each costs as much as decoding."""
    key = (codec.chunk, codec.dtype)
    if getattr(_SCRATCH, "key", None) != key:
        _SCRATCH.key, _SCRATCH.array = key, np.empty(codec.chunk, codec.dtype)
    array: npt.NDArray[Any] = _SCRATCH.array
    return array
