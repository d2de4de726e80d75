"""The audit log: one JSON line a request, written before the answer ends.

A line is one `write` to a file opened for appending, so lines of several processes do not mix, and
a killed process loses none that was written. At the first request of a UTC day the file is renamed
after its last day, `audit-2026-11-27.jsonl`, and a new one begins.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DAY = 86_400


@dataclass(slots=True)
class Visit:
    """One request, as the audit log and the figures of the service have it.

    `dataset`, `sha`, `path` and `sql` are what was asked for, where a handler knows. `sent` counts
    bytes of the body.
    """

    method: str
    route: str
    address: str
    began: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)
    caller: str | None = None
    dataset: str | None = None
    sha: str | None = None
    path: str | None = None
    sql: str | None = None
    range: str | None = None
    status: int = 0
    sent: int = 0
    ended: bool = False

    def line(self) -> bytes:
        """Return the line of the log: what is not known is left out."""
        milliseconds = round((time.perf_counter() - self.started) * 1000, 3)
        said: dict[str, Any] = {
            "time": _utc(self.began),
            "caller": self.caller,
            "address": self.address,
            "method": self.method,
            "route": self.route,
            "dataset": self.dataset,
            "sha": self.sha,
            "path": self.path,
            "range": self.range,
            "sql": self.sql,
            "status": self.status,
            "bytes": self.sent,
            "ms": milliseconds,
        }
        return json.dumps({k: v for k, v in said.items() if v is not None}).encode() + b"\n"


def _utc(seconds: float) -> str:
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int(seconds % 1 * 1000):03}Z"


class Audit:
    """Appends lines to the audit log; with no file it does nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._fd = -1
        self._inode = -1
        self._day = -1

    def write(self, visit: Visit) -> None:
        """Append the line of a request. Raises `OSError` if the disk is full."""
        if self._file is None:
            return
        day = int(visit.began) // _DAY
        if day != self._day or not self._is_current():
            self._reopen(self._file, day)
        line = visit.line()
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(28, "the audit log could not be written", str(self._file))

    def _is_current(self) -> bool:
        """Return whether the open file still has its name: another process may have renamed it."""
        assert self._file is not None
        try:
            return os.stat(self._file).st_ino == self._inode  # noqa: PTH116
        except FileNotFoundError:
            return False

    def _reopen(self, file: Path, day: int) -> None:
        self.close()
        if file.exists():
            _rotate(file, day)
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._inode, self._day = os.fstat(self._fd).st_ino, day

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._inode = self._day = -1


def _rotate(file: Path, today: int) -> None:
    """Rename a log of an earlier day after that day; the first process to come does so."""
    last = int(file.stat().st_mtime) // _DAY
    if last >= today:
        return
    name = f"{file.stem}-{time.strftime('%Y-%m-%d', time.gmtime(last * _DAY))}{file.suffix}"
    try:
        os.link(file, file.with_name(name))
    except FileExistsError:  # another process was faster, or a log of that day is there already
        return
    file.unlink(missing_ok=True)
