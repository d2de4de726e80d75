"""Who decodes: as many threads as there are cores, of all readers of this process.

A read that is decoded by several threads hands its chunks to a pool. Threads that read from a
server may be many: each decodes what it fetched, in turn. What is decoded waits for nothing but
a local disk, so every reader has its turn, whatever it holds or waits for.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.storage.forks import on_fork

_Result = TypeVar("_Result")


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


#: Tasks that one read is decoded in, unless its reader says otherwise.
DECODERS = min(4, cores())


class Scratch:
    """Memory of one thread for what it decodes; new memory costs as much as decoding into it."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an uninitialised array, valid until the next call for the same use."""
        return self.bytes(use, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    def bytes(self, use: str, size: int) -> npt.NDArray[np.uint8]:
        """Return `size` uninitialised bytes, valid until the next call for the same use."""
        memory = self._arrays.get(use)
        if memory is None or memory.size < size:
            memory = self._arrays[use] = np.empty(size, np.uint8)
        return memory[:size]


class _Mine(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.scratch = Scratch()


_MINE = _Mine()
#: The pool, once it is needed.
_POOLS: list[ThreadPoolExecutor] = []
on_fork(in_child=_POOLS.clear)  # its threads are the parent's
#: How many reading threads may decode at a time.
_TURNS = [threading.BoundedSemaphore(cores())]


def _new_turns() -> None:
    _TURNS[0] = threading.BoundedSemaphore(cores())


on_fork(in_child=_new_turns)  # threads of the parent hold some


def decode_in_turn(work: Callable[[], _Result]) -> _Result:
    """Run `work` in this thread, as soon as fewer threads than there are cores do so.

    `work` must wait for nothing but a local disk. Not for a main thread that continues after
    Ctrl-C, which could lose a turn.
    """
    with _TURNS[0]:
        return work()


def scratch() -> Scratch:
    """Return the memory of the thread that calls."""
    return _MINE.scratch


def decode(count: int, work: Callable[[], None]) -> None:
    """Run `work` in `count` tasks of the pool; once all ended, raise what any of them raised.

    `work` must not call this function, or wait for a thread that does.
    """
    if not _POOLS:
        _POOLS.append(ThreadPoolExecutor(cores(), thread_name_prefix="lundprobe-decode"))
    # Not their futures, whose locks Ctrl-C may leave locked while this thread waits.
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    for _ in range(count):
        _POOLS[0].submit(_tell_when_done, work, ended)
    for error in [ended.get() for _ in range(count)]:
        if error is not None:
            raise error


def _tell_when_done(work: Callable[[], None], ended: SimpleQueue[BaseException | None]) -> None:
    try:
        work()
    finally:
        ended.put(sys.exception())
