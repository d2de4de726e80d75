"""As many threads work as cores can keep busy, however many of them wait for a server.

More would only take turns: each has its chunk pushed out of the processor's cache by the next
one's, and the system may stop the one that holds the interpreter, for which all others then wait.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


#: Threads that work beyond the number of cores, while others wait for the interpreter.
_SPARE = 1


class Core:
    """What a thread that works has to itself: memory that the next one finds in the cache."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, use: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array to write to, good until one for the same use is asked for, or while working.

        New memory for each chunk costs as much as decoding it.
        """
        size = math.prod(shape) * dtype.itemsize
        if use not in self._arrays or self._arrays[use].size < size:
            self._arrays[use] = np.empty(size, np.uint8)
        return self._arrays[use][:size].view(dtype).reshape(shape)


class _Cores:
    """Those that no thread works on, and who waits for one; a forked child has all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._free = [Core() for _ in range(cores() + _SPARE)]
        # Whoever has begun goes on before others begin: somebody may wait for that.
        self._going_on: deque[Future[Core]] = deque()
        self._beginning: deque[Future[Core]] = deque()

    @property
    def mine(self) -> Core | None:
        """The core that this thread works on."""
        mine: Core | None = getattr(self._mine, "core", None)
        return mine

    def begin(self) -> Core:
        return self._take(self._beginning)

    def go_on(self) -> Core:
        return self._take(self._going_on)

    def _take(self, queue: deque[Future[Core]]) -> Core:
        turn: Future[Core] = Future()
        with self._lock:
            if self._free:
                turn.set_result(self._free.pop())
            else:
                queue.append(turn)
        core = None
        try:
            core = turn.result()
        finally:
            if core is None and not turn.cancel():  # interrupted, and yet it came
                self._hand_on(turn.result())
        self._mine.core = core
        return core

    def give_back(self) -> None:
        core, self._mine.core = self.mine, None
        if core is not None:  # which a thread that was interrupted has not got
            self._hand_on(core)

    def _hand_on(self, core: Core) -> None:
        with self._lock:
            for queue in (self._going_on, self._beginning):
                while queue:
                    turn = queue.popleft()
                    if turn.set_running_or_notify_cancel():
                        turn.set_result(core)
                        return
            self._free.append(core)

    def make_way(self) -> None:
        if self._going_on:
            self.give_back()
            self.begin()


_CORES = _Cores()


def _forked() -> None:
    _CORES.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def working() -> Iterator[Core]:
    """Around what a processor does: begins once a core is free, and keeps it."""
    mine = _CORES.mine
    if mine is not None:
        yield mine
        return
    core = _CORES.begin()
    try:
        yield core
    finally:
        _CORES.give_back()


@contextmanager
def waiting() -> Iterator[None]:
    """Around waiting for a server or another thread: lends the core that this thread works on.

    Whatever `working` code waits for must be within, or those it waits for may never get a core.
    """
    if _CORES.mine is None:
        yield
        return
    _CORES.give_back()
    try:
        yield
    finally:
        _CORES.go_on()


def make_way() -> None:
    """Between one piece of work and the next: those who have begun theirs go on first."""
    _CORES.make_way()


def awaited(future: Future[_T]) -> _T:
    """The result of what another thread may be at."""
    if future.done():
        return future.result()
    with waiting():
        return future.result()
