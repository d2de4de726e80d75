"""Limit the threads that compute to the number of cores, however many wait for a server.

More threads would only take turns. Each would evict the others' chunks from the processor's cache,
and all would wait whenever the system stops the one that holds the interpreter lock.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.storage.forks import on_fork

_T = TypeVar("_T")
_Lent = Callable[[bool], None]


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def places() -> int:
    """Return how many threads may compute at once: one may wait for the interpreter lock."""
    return cores() + 1


class Core:
    """Scratch memory of one computing thread; the next thread finds it in the cache."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return a scratch array, valid until the next call for the same use.

        New memory for each chunk would cost as much as decoding it.
        """
        size = math.prod(shape) * dtype.itemsize
        if use not in self._arrays or self._arrays[use].size < size:
            self._arrays[use] = np.empty(size, np.uint8)
        return self._arrays[use][:size].view(dtype).reshape(shape)


class _Cores:
    """Free cores, and the threads that wait for one; in a forked child all are free."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._free = [Core() for _ in range(places())]
        self._turns: deque[Future[Core]] = deque()
        # The main thread has its own: Ctrl-C may interrupt it at any instant, and a shared core
        # would then be lost.
        self._of_main = Core()

    @property
    def mine(self) -> Core | None:
        """The core that this thread holds."""
        if threading.current_thread() is threading.main_thread():
            return self._of_main
        mine: Core | None = getattr(self._mine, "core", None)
        return mine

    @property
    def can_lend(self) -> bool:
        """Whether this thread holds a core that it may release while it waits."""
        return self.mine not in (None, self._of_main)

    @property
    def lent(self) -> _Lent | None:
        """Whom to tell when this thread begins (True) and ends waiting."""
        lent: _Lent | None = self._mine.lent
        return lent

    def take(self, lent: _Lent | None) -> Core:
        turn: Future[Core] = Future()
        with self._lock:
            if self._free:
                turn.set_result(self._free.pop())
            else:
                self._turns.append(turn)
        core = turn.result()
        self._mine.core, self._mine.lent = core, lent
        return core

    def give_back(self) -> None:
        core, self._mine.core = self._mine.core, None
        with self._lock:
            if self._turns:
                self._turns.popleft().set_result(core)
            else:
                self._free.append(core)

    def make_way(self) -> None:
        if self._turns and self.can_lend:
            lent = self.lent
            self.give_back()
            self.take(lent)


#: Threads that decode the chunks of one read; Blosc works outside the interpreter's lock.
DECODERS = min(4, cores())
_CORES = _Cores()
_POOLS: list[ThreadPoolExecutor] = []


def _forked() -> None:
    _CORES.__init__()  # type: ignore[misc]
    _POOLS.clear()  # its threads are the parent's


on_fork(in_child=_forked)


@contextmanager
def working(lent: _Lent | None = None) -> Iterator[Core]:
    """Hold a core for computing; wait until one is free.

    `lent` is called with True when this thread begins to wait, and with False when it ends.
    """
    mine = _CORES.mine
    if mine is not None:
        yield mine
        return
    core = _CORES.take(lent)
    try:
        yield core
    finally:
        _CORES.give_back()


@contextmanager
def waiting() -> Iterator[None]:
    """Release this thread's core while it waits for a server or another thread.

    Code within `working` must wait within this, or the threads it waits for may get no core.
    """
    if not _CORES.can_lend:
        yield
        return
    lent = _CORES.lent
    _CORES.give_back()
    if lent:
        lent(True)
    try:
        yield
    finally:
        if lent:
            lent(False)
        _CORES.take(lent)


def make_way() -> None:
    """Let a thread that waits for a core run first; call it between two pieces of work."""
    _CORES.make_way()


def awaited(future: Future[_T]) -> _T:
    """Return the result of a future that another thread may still compute."""
    if future.done():
        return future.result()
    with waiting():
        return future.result()


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Run `work` in several threads at once; once all ended, raise what any of them raised."""
    if not _POOLS:
        _POOLS.append(ThreadPoolExecutor(DECODERS, thread_name_prefix="lundprobe-decoders"))
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
