"""Run SQL in a child process with a deadline and a memory limit.

DuckDB itself enforces neither: a function such as `list_sum(range(300000000))` checks no interrupt
and counts no memory. A `SqlWorker` keeps one process ready, so that only the first query waits for
its start (about 0.5 s), and sends it each table once. It uses `subprocess`, not `multiprocessing`,
which would import the caller's `__main__` again.

On Linux the memory limit is a limit of the process's address space. On other systems only DuckDB's
own limit and the deadline apply.
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
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from lundprobe_zarr.errors import QueryError, QueryLimitError, QueryProcessError, UsageError
from lundprobe_zarr.sql.child import as_stream, from_stream, read_message, write_message
from lundprobe_zarr.sql.session import shown
from lundprobe_zarr.storage.forks import on_fork
from lundprobe_zarr.vocabulary.text import size

TIMEOUT = 60.0
MEMORY = "2GB"
_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]?)(i?)B", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_LEAST_MEMORY = 10_000_000
_MOST_MEMORY = 2**60
#: Largest timeout: a week, which every system's timers accept.
_MOST_SECONDS = 7 * 86_400.0
#: Most seconds for the start of a process, on a busy machine.
_START_SECONDS = 120.0
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lundprobe_zarr.sql.child import main; main()"
)
#: Allocators that reserve no address space in advance, because it is limited.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Limits:
    """Limits of a query: seconds, and bytes of memory beyond the tables.

    `rows` is the most rows of a result: others are left out. `size` is the most bytes of a result,
    as Arrow holds it: a larger one is refused. None is no limit.
    """

    timeout: float
    memory: int
    rows: int | None = None
    size: int | None = None


def limits(timeout: float = TIMEOUT, memory: int | str = MEMORY) -> Limits:
    """Return limits from seconds, and bytes or text such as "500MB" or "4GiB".

    Raises `UsageError` for other values and for values out of range.
    """
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not math.isfinite(timeout) or not 0 < timeout <= _MOST_SECONDS:
        raise UsageError(
            f"timeout={timeout!r}", expected=f"seconds, more than 0 and at most {_MOST_SECONDS:g}"
        )
    most = _bytes(memory)
    if most is None or not _LEAST_MEMORY <= most <= _MOST_MEMORY:
        raise UsageError(
            f"memory={memory!r}",
            expected="at least 10 MB, as a number of bytes or as text such as '500MB' or '4GB'",
        )
    return Limits(float(timeout), most)


def _bytes(memory: object) -> int | None:
    if isinstance(memory, int) and not isinstance(memory, bool):
        return memory
    found = _MEMORY.fullmatch(memory.strip()) if isinstance(memory, str) else None
    if found is None:
        return None
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])


class SqlWorker:
    """A child process for SQL that runs one query at a time.

    Ending a query ends its process, and a new one is started at once. Threads may share a worker,
    but their queries run one after another. `prepare` starts the process before the first query.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._guard = threading.RLock()  # of the state below, used by the deadline and `cancel`
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_running = False
        self._ended = ""
        self._sent: dict[str, weakref.ref[pa.Table]] = {}
        self._count = 0

    def prepare(self) -> None:
        """Start the process if it is not running. Do not wait for it."""
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
        """Run statements over `tables` and return the last one's result; messages quote `text`.

        Time counts from when the process is ready and free. Raises `QueryError` like `sql.session`,
        and `QueryLimitError` if the query exceeded its bounds or was cancelled. Ctrl-C ends the
        query and is raised again.
        """
        request: dict[str, Any] = {"text": text, "statements": list(statements), "remedy": remedy}
        request |= asdict(bounds)
        with self._turn:
            process = self._started()
            deadline = self._deadline(bounds.timeout)
            answered = False
            try:
                answer, stream = self._ask(process, request, tables)
                answered = True
            except (EOFError, OSError) as error:
                raise self._ended_early(process, bounds, text) from error
            finally:
                deadline.cancel()
                if not answered:  # also after Ctrl-C: the next query would get this one's answer
                    self._replace()
                self._finish()
            if answer.get("memory"):
                self._replace()
                raise _too_much(bounds, text)
        if "size" in answer:
            raise _too_large(answer["size"], bounds, text)
        if "error" in answer:
            found = QueryError(answer["error"])
            found.position = answer["position"]
            raise found
        return from_stream(stream)

    def cancel(self) -> None:
        """End a running query from another thread. It raises `QueryLimitError`."""
        self._end("cancelled")

    def close(self) -> None:
        """End the process and a running query. A later query starts another process."""
        with self._guard:
            self.cancel()
            self._discard()

    def abandon(self) -> None:
        """Close the pipes to the process without ending it: after a fork the parent owns it."""
        if self._process is not None:
            _close_pipes(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the process when it is ready for requests."""
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
                raise QueryProcessError(
                    f"the process for SQL ({sys.executable}) did not start: "
                    f"exit status {process.wait()}",
                    remedy="check that memory is available and the environment has not changed",
                ) from error
            finally:
                late.cancel()
            self._is_ready = True
        return process

    def _deadline(self, seconds: float) -> threading.Timer:
        """Mark a query as running, and end it after so many seconds."""
        with self._guard:
            self._is_running, self._ended = True, ""
        timer = threading.Timer(seconds, self._end, ["time"])
        timer.daemon = True
        timer.start()
        return timer

    def _ask(
        self,
        process: subprocess.Popen[bytes],
        request: dict[str, Any],
        tables: Mapping[str, pa.Table],
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request and the tables not sent before; return the answer and the result."""
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

    def _ended_early(
        self, process: subprocess.Popen[bytes], bounds: Limits, text: str
    ) -> QueryLimitError:
        """Return the error for a query whose process ended without an answer."""
        if self._ended == "cancelled":
            return QueryLimitError("was cancelled", where=shown(text))
        if self._ended == "time":
            return _limited(
                "time", f"was ended at its time limit of {bounds.timeout:g} s", text, "timeout"
            )
        return _died(process, bounds, text)

    def _finish(self) -> None:
        """Mark the query as finished; replace a process that was killed at the last moment."""
        with self._guard:
            self._is_running = False
            if self._ended:
                self._replace()

    def _replace(self) -> None:
        """Start a new process now, so that the next query need not wait for it."""
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


def _limited(limit: str, finding: str, text: str, option: str) -> QueryLimitError:
    """Return the error for a query that exceeded a limit, which an option raises."""
    error = QueryLimitError(
        finding,
        where=shown(text),
        remedy=f"simplify the query, or raise the limit with {option}= (--{option})",
    )
    error.limit = limit
    return error


def _too_much(bounds: Limits, text: str) -> QueryLimitError:
    finding = f"was ended at its memory limit of {size(bounds.memory)}"
    return _limited("memory", finding, text, "memory")


def _died(process: subprocess.Popen[bytes], bounds: Limits, text: str) -> QueryLimitError:
    """Return the error for a process that ended by itself without an answer."""
    finding = (
        f"its process ended by itself (exit status {process.wait()}), probably because it ran out "
        f"of memory; its limit is {size(bounds.memory)}"
    )
    return _limited("memory", finding, text, "memory")


def _too_large(found: int, bounds: Limits, text: str) -> QueryLimitError:
    error = QueryLimitError(
        f"its result has {found} bytes",
        where=shown(text),
        expected=f"at most {bounds.size}",
        remedy="select fewer rows or columns",
    )
    error.limit = "result"
    return error


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
    """Return this process's worker, which ends with the process. A fork gets its own worker."""
    found = SqlWorker()
    atexit.register(found.close)
    on_fork(in_child=lambda: _forget(found))
    return found


def _forget(forked: SqlWorker) -> None:
    forked.abandon()
    atexit.unregister(forked.close)
    worker.cache_clear()
