"""SQL in a process of its own, which is ended at the deadline and cannot outgrow its memory.

DuckDB keeps neither by itself: a function such as `list_sum(range(300000000))` looks at no
interrupt and counts no memory. A `SqlWorker` keeps one process ready, so that only the first query
waits for its start (about 0.5 s), and sends it each table once. It is a plain `subprocess`, not
`multiprocessing`: nothing of the caller's `__main__` is imported again.

The memory is a limit on the process's address space on Linux. Elsewhere only DuckDB's own count
holds it, and the deadline ends what that overlooks.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from lundprobe_zarr.errors import QueryError, QueryLimitError, UsageError
from lundprobe_zarr.sql.child import as_stream, from_stream, read_message, write_message
from lundprobe_zarr.sql.session import shown

TIMEOUT = 60.0
MEMORY = "2GB"
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]?)(i?)B", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LEAST_MEMORY = 10_000_000
_MOST_MEMORY = 2**60
#: Longer than any query is meant to run, and what every system's timers take.
_MOST_SECONDS = 7 * 86_400.0
#: Seconds that a process may take to start, on a machine that is busy.
_START_SECONDS = 120.0
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lundprobe_zarr.sql.child import main; main()"
)
#: Allocators that take no address space in advance: it counts.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Limits:
    """What a query may take: seconds, and bytes of memory beyond the tables themselves."""

    timeout: float
    memory: int


def limits(timeout: float = TIMEOUT, memory: int | str = MEMORY) -> Limits:
    """Bounds as people give them: seconds, and bytes or text such as "500MB" or "4GiB".

    Raises `UsageError` for what is neither, or out of range.
    """
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or not 0 < timeout <= _MOST_SECONDS:
        raise UsageError(
            f"timeout={timeout!r}", expected=f"seconds, more than 0 and at most {_MOST_SECONDS:g}"
        )
    size = _bytes(memory)
    if size is None or not _LEAST_MEMORY <= size <= _MOST_MEMORY:
        raise UsageError(
            f"memory={memory!r}",
            expected=("at least 10 MB, as a number of bytes or as text such as '500MB' or '4GB'"),
        )
    return Limits(float(timeout), size)


def _bytes(memory: object) -> int | None:
    if isinstance(memory, int) and not isinstance(memory, bool):
        return memory
    found = _MEMORY.fullmatch(memory.strip()) if isinstance(memory, str) else None
    if found is None:
        return None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])


class SqlWorker:
    """One process for SQL, one query at a time; a query that is ended takes its process with it.

    Safe to use from several threads, which wait for each other: use several for several queries
    at once. `prepare` starts the process before the first query; after one was ended the next is
    started at once.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._guard = threading.RLock()  # of what follows: the deadline and `cancel` look at it
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_running = False
        self._ended = ""
        self._sent: dict[str, weakref.ref[pa.Table]] = {}
        self._count = 0

    def prepare(self) -> None:
        """Start the process, unless it runs, and do not wait for it."""
        with self._guard:
            if self._process is None or self._process.poll() is not None:
                self._discard()
                self._process = _start()

    def run(
        self,
        text: str,
        statements: Sequence[str],
        tables: Mapping[str, pa.Table],
        bounds: Limits,
        remedy: str = "",
    ) -> pa.Table:
        """What the last of some statements gives, which see `tables`; messages speak of `text`.

        The time counts from when the process is there and free. Raises `QueryError` as
        `sql.session` does, `QueryLimitError` if the query took more than its bounds or was
        cancelled. An interrupt (Ctrl-C) ends the query and is passed on.
        """
        request: dict[str, Any] = {"text": text, "statements": list(statements), "remedy": remedy}
        request |= {"timeout": bounds.timeout, "memory": bounds.memory}
        with self._turn:
            process = self._started()
            deadline = self._deadline(bounds.timeout)
            try:
                answer, stream = self._ask(process, request, tables)
            except (EOFError, OSError) as error:
                why = self._ended or _died(process, bounds)
                self._replace()
                raise QueryLimitError(str(why), where=shown(text)) from error
            except BaseException:
                self._replace()
                raise
            finally:
                deadline.cancel()
                self._finish()
            if answer.get("memory"):
                self._replace()
                raise QueryLimitError(str(_too_much(bounds)), where=shown(text))
        if "error" in answer:
            raise QueryError(answer["error"])
        return from_stream(stream)

    def cancel(self) -> None:
        """End the query that runs, if any, from another thread: it raises `QueryLimitError`."""
        self._end("was cancelled")

    def close(self) -> None:
        """End the process, and a query that runs; a later query starts another."""
        with self._guard:
            self.cancel()
            self._discard()

    def abandon(self) -> None:
        """Let go of the process without ending it: after a fork it is the parent's."""
        if self._process is not None:
            _close_pipes(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, once it waits for requests."""
        self.prepare()
        process = self._process
        assert process is not None
        if not self._is_ready:
            late = threading.Timer(_START_SECONDS, process.kill)
            late.daemon = True
            late.start()
            try:
                read_message(_pipe(process.stdout))
            except EOFError as error:
                raise QueryError(
                    f"the process for SQL ({sys.executable}) did not start: "
                    f"exit status {process.wait()}",
                    remedy="is there memory left, and the same environment?",
                ) from error
            finally:
                late.cancel()
            self._is_ready = True
        return process

    def _deadline(self, seconds: float) -> threading.Timer:
        """From now on a query runs; end it after so many seconds."""
        with self._guard:
            self._is_running, self._ended = True, ""
        why = (
            f"was ended after {seconds:g} s, the time it may take; ask for less, or allow more "
            "with timeout= (--timeout)"
        )
        timer = threading.Timer(seconds, self._end, [why])
        timer.daemon = True
        timer.start()
        return timer

    def _ask(
        self,
        process: subprocess.Popen[bytes],
        request: dict[str, Any],
        tables: Mapping[str, pa.Table],
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request and the tables that are not there yet; the answer, and its result."""
        dropped = [key for key, table in self._sent.items() if table() is None]
        for key in dropped:
            del self._sent[key]
        keys = {id(table()): key for key, table in self._sent.items()}
        new: dict[str, pa.Table] = {}
        for table in tables.values():
            if id(table) not in keys:
                self._count += 1
                keys[id(table)] = str(self._count)
                new[str(self._count)] = table
        named = {name: keys[id(table)] for name, table in tables.items()}
        request |= {"tables": named, "dropped": dropped, "new": list(new)}
        write_message(_pipe(process.stdin), json.dumps(request).encode())
        for key, table in new.items():
            write_message(_pipe(process.stdin), as_stream(table))
            self._sent[key] = weakref.ref(table)
        answers = _pipe(process.stdout)
        answer: dict[str, Any] = json.loads(read_message(answers))
        return answer, bytearray() if answer else read_message(answers)

    def _end(self, why: str) -> None:
        with self._guard:
            if self._is_running and self._process is not None:
                self._ended = self._ended or why
                self._process.kill()

    def _finish(self) -> None:
        """No query runs any more; one that was ended at the very last takes its process along."""
        with self._guard:
            self._is_running = False
            if self._ended:
                self._replace()

    def _replace(self) -> None:
        """Have a fresh process start, so that the next query need not wait for it."""
        with self._guard:
            self._is_running, self._ended = False, ""
            self._discard()
            self.prepare()

    def _discard(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _close_pipes(self._process)
        self._process, self._is_ready = None, False
        self._sent.clear()


def _too_much(bounds: Limits) -> str:
    return (
        f"needed more than {bounds.memory / 1e9:g} GB of memory and was ended; ask for less, or "
        "allow more with memory= (--memory)"
    )


def _died(process: subprocess.Popen[bytes], bounds: Limits) -> str:
    """What to say of a process that ended without an answer, and that nobody here ended."""
    return (
        f"the process that ran it ended by itself (exit status {process.wait()}), most likely for "
        f"want of memory: it may take {bounds.memory / 1e9:g} GB; ask for less, or allow more "
        "with memory= (--memory)"
    )


def _start() -> subprocess.Popen[bytes]:
    paths = json.dumps([str(Path(path).absolute()) for path in sys.path])
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=os.environ | _ENVIRONMENT,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    _pipe(process.stdin).close()
    _pipe(process.stdout).close()


@cache
def worker() -> SqlWorker:
    """The worker of this process, which ends with it; a fork gets its own."""
    found = SqlWorker()
    atexit.register(found.close)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _forget(found))
    return found


def _forget(forked: SqlWorker) -> None:
    forked.abandon()
    atexit.unregister(forked.close)
    worker.cache_clear()
