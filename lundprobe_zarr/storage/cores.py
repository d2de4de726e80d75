"""As many threads work as cores can keep busy, however many of them wait for a server.

More would only take turns: each has its chunk pushed out of the processor's cache by the next
one's, and the system may stop the one that holds the interpreter, for which all others then wait.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")
_Lent = Callable[[bool], None]


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def places() -> int:
    """Threads that may work at a time: one more than cores, for others wait for the interpreter."""
    return cores() + 1


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
        self._free = [Core() for _ in range(places())]
        self._turns: deque[Future[Core]] = deque()
        # The main thread has one of its own: it is where Ctrl-C strikes, at any instant, and a
        # core that was lost so would be lost for all.
        self._of_main = Core()

    @property
    def mine(self) -> Core | None:
        """The core that this thread works on."""
        if threading.current_thread() is threading.main_thread():
            return self._of_main
        mine: Core | None = getattr(self._mine, "core", None)
        return mine

    @property
    def can_lend(self) -> bool:
        """Whether this thread works on a core that others may have meanwhile."""
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


_CORES = _Cores()


def _forked() -> None:
    _CORES.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def working(lent: _Lent | None = None) -> Iterator[Core]:
    """Around what a processor does: begins once a core is free, and keeps it.

    `lent` is told when this thread begins (True) and ends waiting.
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
    """Around waiting for a server or another thread: lends the core that this thread works on.

    Whatever `working` code waits for must be within, or those it waits for may never get a core.
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
    """Between one piece of work and the next: whoever waits for a core has it first."""
    _CORES.make_way()


def awaited(future: Future[_T]) -> _T:
    """The result of what another thread may be at."""
    if future.done():
        return future.result()
    with waiting():
        return future.result()
