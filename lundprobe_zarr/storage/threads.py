"""Threads that share the work of one read, and are kept: to start them takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from lundprobe_zarr.storage.cores import cores

#: Threads that decode the chunks of one read; Blosc works outside the interpreter's lock.
DECODERS = min(4, cores())

_POOLS: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOLS.clear)  # its threads are the parent's


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Do `work` in several threads at once, and raise what any of them raises, once all ended."""
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
