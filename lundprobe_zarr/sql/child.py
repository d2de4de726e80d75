"""The child process of a `SqlWorker`: it answers requests until its standard input ends.

A message is its length (8 bytes, little-endian) and its bytes. A request is a JSON object, followed
by the tables that it announces, each an Arrow IPC stream. The child imports only `sql` and below.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import struct
import sys
import threading
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa

from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.sql.session import execute

_LENGTH = struct.Struct("<Q")
#: Address space beyond `memory`, bytes: stacks and heaps of DuckDB's threads, copies of results.
_SLACK = 500_000_000
#: Seconds after a deadline at which the process ends itself, should its parent not end it.
_GRACE = 5
#: Starts DuckDB's threads, so that their own memory is not counted.
_WARM = "SELECT sum(hash(range)) FROM range(1000000)"


def write_message(file: IO[bytes], message: bytes | pa.Buffer) -> None:
    """Write one message. Raises `OSError` if the reader has closed the pipe."""
    view = memoryview(_LENGTH.pack(memoryview(message).nbytes) + bytes(message))
    while view:
        view = view[file.write(view) :]


def read_message(file: IO[bytes]) -> bytearray:
    """Read one message. Raises `EOFError` if the writer has ended."""
    return _read(file, _LENGTH.unpack(_read(file, _LENGTH.size))[0])


def _read(file: IO[bytes], size: int) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
    return found


def as_stream(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_stream(stream: bytearray) -> pa.Table:
    """Return the table that `as_stream` wrote."""
    return pa.ipc.open_stream(pa.py_buffer(stream)).read_all()


def main() -> None:
    """Answer requests until the parent ends. Ctrl-C is ignored: the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb", 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # other output would corrupt the messages
    execute(_WARM, [_WARM], {})
    base = _address_space()
    waiting: queue.SimpleQueue[tuple[dict[str, Any], list[pa.Table]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting), daemon=True).start()
    write_message(answers, b"{}")
    held: dict[str, pa.Table] = {}
    while True:
        request, tables = waiting.get()
        for key in request["dropped"]:
            del held[key]
        held |= zip(request["new"], tables, strict=True)
        answer, result = _answer(request, held, base)
        write_message(answers, json.dumps(answer).encode())
        if result is not None:
            write_message(answers, result)
        if answer.get("memory"):  # memory may still be held, so the next query gets a new process
            os._exit(0)


def _receive(
    requests: IO[bytes], waiting: queue.SimpleQueue[tuple[dict[str, Any], list[pa.Table]]]
) -> None:
    """Read requests while a query runs, so that the end of the parent ends the query too."""
    try:
        while True:
            request = json.loads(read_message(requests))
            tables = [from_stream(read_message(requests)) for _ in request["new"]]
            waiting.put((request, tables))
    except (EOFError, OSError):
        os._exit(0)


def _answer(
    request: dict[str, Any], held: dict[str, pa.Table], base: int
) -> tuple[dict[str, Any], pa.Buffer | None]:
    """Run one request within its bounds."""
    tables = {name: held[key] for name, key in request["tables"].items()}
    memory = request["memory"]
    _set_alarm(math.ceil(request["timeout"]) + _GRACE)
    _limit(base + sum(t.nbytes for t in held.values()) + memory + _SLACK)
    try:
        result = execute(
            request["text"],
            request["statements"],
            tables,
            request["remedy"],
            memory,
            request["rows"],
        )
        if request["size"] is not None and result.nbytes > request["size"]:
            return {"size": result.nbytes}, None
        return {}, as_stream(result)
    except QueryError as error:
        cause = error.__cause__
        full = isinstance(cause, duckdb.OutOfMemoryException) or "bad_alloc" in str(cause)
        return {"memory": full, "error": str(error), "position": error.position}, None
    except MemoryError:
        return {"memory": True}, None
    finally:
        _limit(None)
        _set_alarm(0)


def _set_alarm(seconds: int) -> None:
    """Let the system end this process after `seconds`, on systems with alarms; 0 cancels."""
    if sys.platform != "win32":
        signal.alarm(seconds)


def _address_space() -> int:
    """Return the bytes of address space in use; 0 where it cannot be limited."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _limit(size: int | None) -> None:
    """Limit the address space to `size` bytes; None lifts the limit. Linux only."""
    if sys.platform == "linux":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = hard if size is None else size
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
