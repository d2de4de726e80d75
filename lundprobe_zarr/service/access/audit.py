"""The audit log: a JSON line a request, written before the answer ends.

A line is one `write` to a file opened for appending, so lines of several processes do not mix, and
a killed process loses none that was written. What cannot be logged is not answered.

An answer in several pieces has a line before its first piece too: `"event": "begun"`, with an `id`
that its last line repeats. If the process is killed between them, the log still says that somebody
got a part of a file.

At the first line of a UTC day the file is renamed after its last day, `audit-2026-11-27.jsonl`,
and a new one begins.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.callers import without_tokens
from lundprobe_zarr.service.http.answers import HttpError

if TYPE_CHECKING:
    from lundprobe_zarr.service.access.limits import Account

_LOG = logging.getLogger("lundprobe_zarr.service")
_DAY = 86_400
#: Longest text of one field, characters; SQL that names all patients by id has 13,000.
_MOST_CHARACTERS = 2_000
_MOST_SQL = 20_000


@dataclass(slots=True)
class Visit:
    """One request, as the audit log and the figures of the service have it.

    `dataset`, `sha`, `path` and `sql` are what was asked for, where a handler knows. `route` is the
    URL's path, without the query. `sent` counts bytes of the body.
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
    id: str | None = None
    account: Account | None = None
    counted: int = 0

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def count(self) -> None:
        """Charge what was sent since the last call to the caller's account."""
        if self.account is not None:
            self.account.send(self.sent - self.counted)
            self.counted = self.sent

    def line(self, event: str | None = None) -> bytes:
        """Return the line of the log: what is not known is left out."""
        fields: dict[str, Any] = {
            "time": _utc(self.began),
            "event": event,
            "id": self.id,
            "caller": self.caller,
            "address": self.address,
            "method": self.method,
            "route": _bounded(self.route),
            "dataset": _bounded(self.dataset),
            "sha": self.sha,
            "path": _bounded(self.path),
            "range": self.range,
            "sql": _bounded(self.sql, _MOST_SQL),
            "status": self.status,
            "bytes": self.sent,
            "ms": round(self.seconds * 1000, 3),
        }
        return json.dumps({k: v for k, v in fields.items() if v is not None}).encode() + b"\n"


def _bounded(text: str | None, most: int = _MOST_CHARACTERS) -> str | None:
    """Return a text for a line: without tokens, in UTF-8, and cut if it is long."""
    if text is None:
        return None
    # JSON of a client may hold half a surrogate pair, with which no reader takes the line.
    text = text.encode(errors="backslashreplace").decode()
    text = without_tokens(text)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _utc(seconds: float) -> str:
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int(seconds % 1 * 1000):03}Z"


class Audit:
    """Appends lines to the audit log; with no file it does nothing.

    Parameters
    ----------
    file : Path or None
        The log. Raises `UsageError` if it cannot be written.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._fd = -1
        self._inode = -1
        self._day = -1
        self._is_failing = False
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._reopen(file, int(time.time()) // _DAY)
            except OSError as error:
                raise UsageError(
                    f"--audit: {error.strerror}", where=file, expected="a file that can be written"
                ) from error

    def begin(self, visit: Visit) -> None:
        """Append the line of an answer in several pieces before its first. Raises as `write`."""
        if self._file is not None:
            visit.id = secrets.token_hex(8)
            self._append(self._file, visit.line("begun"))

    def write(self, visit: Visit) -> None:
        """Append the line of a request.

        Raises `HttpError` (503) if it cannot be written: nothing is answered then.
        """
        if self._file is not None:
            self._append(self._file, visit.line())

    def _append(self, file: Path, line: bytes) -> None:
        try:
            day = int(time.time()) // _DAY
            if day != self._day or not self._is_current(file):
                self._reopen(file, day)
            written = os.write(self._fd, line)
            if written != len(line):  # what is there of it is a damaged line: the next one begins
                os.write(self._fd, b"\n")  # on its own, if there is room for that
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        except OSError as error:
            if not self._is_failing:
                _LOG.critical("the audit log cannot be written, so nothing is served: %s", error)
            self._is_failing = True
            raise HttpError(
                503,
                "The service cannot write its audit log, and gives nothing without. Try later.",
                headers={"Retry-After": "30"},
            ) from error
        if self._is_failing:
            _LOG.warning("the audit log can be written again")
        self._is_failing = False

    def _is_current(self, file: Path) -> bool:
        """Return whether the open file still has its name: somebody may have renamed it."""
        try:
            return os.stat(file).st_ino == self._inode  # noqa: PTH116
        except FileNotFoundError:
            return False

    def _reopen(self, file: Path, day: int) -> None:
        self.close()
        _rotate(file, day)
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._inode, self._day = os.fstat(self._fd).st_ino, day

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._inode = self._day = -1


def _rotate(file: Path, today: int) -> None:
    """Rename a log of an earlier day after that day; the first process to come does so."""
    folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            found = file.stat()
        except FileNotFoundError:
            return
        last = int(found.st_mtime) // _DAY
        if last < today and stat.S_ISREG(found.st_mode):  # never a pipe or /dev/stdout
            file.rename(_free_name(file, last))
    finally:
        os.close(folder)


def _free_name(file: Path, day: int) -> Path:
    name = f"{file.stem}-{time.strftime('%Y-%m-%d', time.gmtime(day * _DAY))}"
    found, number = file.with_name(f"{name}{file.suffix}"), 2
    while found.exists():
        found, number = file.with_name(f"{name}-{number}{file.suffix}"), number + 1
    return found
