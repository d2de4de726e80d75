"""Ctrl-C and SIGTERM: the first one ends the work in order, further ones wait for that."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lundprobe_zarr.cli.status import INTERRUPTED, TERMINATED


@dataclass
class Interrupt:
    """Which signal came, if one did."""

    received: int | None = None

    @property
    def status(self) -> int:
        """Exit status that says so."""
        return TERMINATED if self.received == signal.SIGTERM else INTERRUPTED


@contextmanager
def interruptible(announce: Callable[[], None]) -> Iterator[Interrupt]:
    """Within, the first SIGINT or SIGTERM calls `announce` and raises `KeyboardInterrupt`.

    Further ones are ignored: they would break off the orderly end of workers. Outside the main
    thread, where Python allows no handler, signals stay as they are.
    """
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if state.received is None:
            state.received = number
            announce()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
