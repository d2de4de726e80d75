"""Fork safety of reading threads: a child reads or raises, but never deadlocks.

A forked child has copies of all locks, but not the threads that hold them. So a fork waits until
no thread of this package is reading, and threads that want to read wait until the fork is over. If
the wait times out, the child raises an error when it reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.forks import on_fork

#: Longest wait of a fork, seconds; a read can hang at a server for longer.
TIMEOUT = 10.0


class _Gate:
    """Counter of reading threads; closed while the process forks."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.reading = 0
        self.closed = False
        self.torn = False

    def enter(self) -> bool:
        """Count a reading thread; return False if closed."""
        with self.condition:
            self.reading += not self.closed
            return not self.closed

    def leave(self) -> None:
        """Count a thread that has finished reading."""
        with self.condition:
            self.reading -= 1
            self.condition.notify_all()

    def before(self) -> None:
        """Close, and wait for reading threads."""
        self.condition.acquire()
        self.closed = True
        self.condition.wait_for(lambda: not self.reading, TIMEOUT)

    def in_parent(self) -> None:
        """Reopen."""
        self.closed = False
        self.condition.notify_all()
        self.condition.release()

    def in_child(self) -> None:
        """Reset; locks of threads that were still reading can never be released."""
        torn = self.torn or self.reading > 0
        self.__init__()  # type: ignore[misc]
        self.torn = torn


_GATE = _Gate()
on_fork(before=_GATE.before, in_parent=_GATE.in_parent, in_child=_GATE.in_child)


@contextmanager
def reading() -> Iterator[None]:
    """Guard reading in a thread; raise `UsageError` where it could deadlock."""
    if _GATE.torn:
        raise UsageError(
            "this process was forked while a thread of its parent was reading, "
            f"for more than {TIMEOUT:g} s",
            expected="workers that start before reading, or by spawn or forkserver",
        )
    entered = False
    try:
        while not (entered := _GATE.enter()):
            with _GATE.condition:
                _GATE.condition.wait_for(lambda: not _GATE.closed)
        yield
    finally:
        if entered:
            _GATE.leave()
