"""Reading threads and `fork`: a child works or raises, and never waits for a thread it lacks.

A forked child has copies of all locks and none of the threads that hold them. So a fork waits
until no thread of ours is in the middle of reading, and those that would begin wait until it is
over; if that takes too long, the child is told and refuses to read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.cores import waiting
from lundprobe_zarr.storage.forks import on_fork

#: Seconds that a fork waits for reads at most: a server may let one hang.
FORK_TIMEOUT = 10.0


class _Gate:
    """Counts the threads that read; closed while the process forks."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.reading = 0
        self.closed = False
        self.torn = False

    def enter(self) -> bool:
        """Count one more that reads; False if closed."""
        with self.condition:
            self.reading += not self.closed
            return not self.closed

    def leave(self) -> None:
        """Count one less."""
        with self.condition:
            self.reading -= 1
            self.condition.notify_all()

    def before(self) -> None:
        """Close, and wait for those who read."""
        self.condition.acquire()
        self.closed = True
        self.condition.wait_for(lambda: not self.reading, FORK_TIMEOUT)

    def in_parent(self) -> None:
        """Open again."""
        self.closed = False
        self.condition.notify_all()
        self.condition.release()

    def in_child(self) -> None:
        """Start anew; locks that a thread held while reading stay locked here for ever."""
        torn = self.torn or self.reading > 0
        self.__init__()  # type: ignore[misc]
        self.torn = torn


_GATE = _Gate()
on_fork(before=_GATE.before, in_parent=_GATE.in_parent, in_child=_GATE.in_child)


@contextmanager
def reading() -> Iterator[None]:
    """Around everything that reads in a thread; raises `UsageError` where that could hang."""
    if _GATE.torn:
        raise UsageError(
            "this process was forked while a thread of its parent was reading, "
            f"for {FORK_TIMEOUT:g} s on end",
            expected="workers to be started before, or by spawn or forkserver",
        )
    entered = False
    try:
        while not (entered := _GATE.enter()):
            # Without a core: the threads that are waited for may need it.
            with waiting(), _GATE.condition:
                _GATE.condition.wait_for(lambda: not _GATE.closed)
        yield
    finally:
        if entered:
            _GATE.leave()
