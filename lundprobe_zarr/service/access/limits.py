"""Limits of callers: requests at a time and bytes a day, over all processes of one machine.

Each caller with such a limit has a small file in the service's state folder, which every process
maps into memory: a row of counters for each process, written by that process alone, so there is
nothing to lock. What a caller takes is the sum over the rows. The files outlive a restart.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.callers import Caller
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.vocabulary.text import size

_DAY = 86_400
#: Processes of one machine that count together.
_MOST_PROCESSES = 128
#: Counters of a row: UTC day (days since 1970), bytes sent on it, requests running.
_DAY_AT, _BYTES_AT, _RUNNING_AT, _COUNTERS = 0, 1, 2, 3
_FILE_BYTES = _MOST_PROCESSES * _COUNTERS * 8


class Account:
    """What one caller takes, counted by all processes.

    `row` is this process's own: nobody else writes it.
    """

    def __init__(self, file: Path, row: int) -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _FILE_BYTES)  # of a file that is there: the same size
            counters = memoryview(mmap.mmap(fd, _FILE_BYTES)).cast("Q")
        finally:
            os.close(fd)
        self._counters = counters
        self._at = row * _COUNTERS

    def running(self) -> int:
        """Return how many requests run."""
        return sum(self._counters[_RUNNING_AT::_COUNTERS])

    def bytes_on(self, day: int) -> int:
        """Return the bytes sent on a UTC day."""
        days = self._counters[_DAY_AT::_COUNTERS].tolist()
        if day not in days:
            return 0
        sent = self._counters[_BYTES_AT::_COUNTERS].tolist()
        return sum(b for b, d in zip(sent, days, strict=True) if d == day)

    def run(self, change: int) -> None:
        """Count a request that begins (1) or ends (-1)."""
        self._counters[self._at + _RUNNING_AT] += change

    def send(self, count: int) -> None:
        """Count bytes that are sent."""
        day, at = int(time.time()) // _DAY, self._at
        if self._counters[at + _DAY_AT] != day:
            self._counters[at + _BYTES_AT] = 0
            self._counters[at + _DAY_AT] = day
        self._counters[at + _BYTES_AT] += count

    def forget_running(self, row: int) -> None:
        """Count no running request in the row of a process that has ended."""
        self._counters[row * _COUNTERS + _RUNNING_AT] = 0


class LimitKeeper:
    """Counts what callers take, and refuses what exceeds their limits.

    Parameters
    ----------
    folder : Path
        Folder of the counters, shared by the processes of the machine. Raises `UsageError` if it
        cannot be used, or if too many processes use it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._accounts: dict[str, Account] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "rows.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"the state folder cannot be used: {error.strerror}",
                where=folder,
                remedy="choose another one with --state",
            ) from error
        self._row = self._take_row()

    def _take_row(self) -> int:
        """Return a row for this process. The system gives it back when the process ends.

        What ran in rows that nobody holds has ended with its process.
        """
        free = [row for row in range(_MOST_PROCESSES) if self._locks(row)]
        if not free:
            raise UsageError(
                f"{_MOST_PROCESSES} processes use this state folder already",
                where=self._folder,
                remedy="choose another one with --state",
            )
        for file in self._folder.glob("*.counters"):
            account = Account(file, free[0])
            for row in free:
                account.forget_running(row)
        for row in free[1:]:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, row)
        return free[0]

    def _locks(self, row: int) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def request(self, caller: Caller) -> Iterator[Account | None]:
        """Count a request while it runs; give the account that its bytes are counted in.

        There is none for a caller without such limits. Raises `HttpError` (429) beyond a limit.
        """
        limits = caller.limits
        if limits.requests is None and limits.bytes_per_day is None:
            yield None
            return
        account = self._account(caller.key)
        if limits.requests is not None and account.running() >= limits.requests:
            raise _too_many(caller, limits.requests)
        if limits.bytes_per_day is not None:
            now = time.time()
            if account.bytes_on(int(now) // _DAY) >= limits.bytes_per_day:
                raise _too_much(caller, limits.bytes_per_day, _DAY - int(now) % _DAY)
        account.run(1)
        try:
            yield account
        finally:
            account.run(-1)

    def _account(self, key: str) -> Account:
        found = self._accounts.get(key)
        if found is None:
            name = hashlib.sha256(key.encode()).hexdigest()[:32]
            found = Account(self._folder / f"{name}.counters", self._row)
            self._accounts[key] = found
        return found

    def close(self) -> None:
        """Give the row back."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def _too_many(caller: Caller, most: int) -> HttpError:
    return HttpError(
        429,
        f"{caller.name} has {most} requests running, which is its limit. Wait for one.",
        headers={"Retry-After": "1"},
    )


def _too_much(caller: Caller, most: int, seconds: int) -> HttpError:
    return HttpError(
        429,
        f"{caller.name} has had its {size(most)} of this UTC day. It may continue in "
        f"{seconds // 3600} h {seconds % 3600 // 60} min.",
        headers={"Retry-After": str(seconds)},
    )
