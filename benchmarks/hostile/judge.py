"""Runs a case and says what is wrong with how it ended: nothing, if it ended as documented."""

from __future__ import annotations

import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.hostile.changes import NAME
from benchmarks.hostile.targets import Target

#: Seconds that a case may take; the slowest sound one takes tenths of a second.
SECONDS = 20
#: MiB by which a case may raise the most memory that this process ever had.
MEMORY_MIB = 256
_FOREIGN_WORDS = ("errors.pydantic.dev", "Traceback (most recent")


class _TooLong(BaseException):  # not an Exception: code under test must not swallow it
    pass


def judge(target: Target, case: Any) -> str | None:
    """What is wrong with how `target` takes a case; None if it ends as it should.

    A case may pass or raise one of the target's documented errors, in bounded time and memory,
    with nothing written and no free text of a file in the message.
    """
    before, start = _most_memory(), time.monotonic()
    found = None
    try:
        with _time_limit(SECONDS):
            target.run(case)
    except target.allowed as error:
        found = _message_finding(str(error), target.quotes)
    except _TooLong:
        found = f"no end after {SECONDS} s"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        found = f"{type(error).__name__} {_place(error)}: {str(error)[:200]}"
    if found is None and (grown := _most_memory() - before) > MEMORY_MIB:
        found = f"{grown:.0f} MiB of memory"
    if found is None and time.monotonic() - start > SECONDS:  # in code that no signal stops
        found = f"took {time.monotonic() - start:.0f} s"
    return found


def strangers(folder: Path) -> list[str]:
    """Files in the folder that cases run in, where nothing may be written."""
    return sorted(p.name for p in folder.iterdir())


def _message_finding(message: str, quotes: bool) -> str | None:
    if not message.strip():
        return "an error without a message"
    for words in (*_FOREIGN_WORDS, *(() if quotes else (NAME,))):
        if words in message:
            return f"a message with {words!r}: {message[:200]}"
    return None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "lundprobe_zarr" in f.filename or "conversion" in f.filename]
    last = (ours or frames)[-1]
    return f"at {Path(last.filename).name}:{last.lineno} ({last.name})"


def _most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def limit_memory(gib: float) -> None:
    """Refuse this process more address space than it has now and `gib` beyond that."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0  # noqa: PTH110
    size = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(gib * 2**30), resource.RLIM_INFINITY))
