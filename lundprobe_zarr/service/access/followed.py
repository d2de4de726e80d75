"""A file of the operator that is read again when it changes, while the service runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from lundprobe_zarr.errors import LundProbeError

_LOG = logging.getLogger("lundprobe_zarr.service")
_T = TypeVar("_T")

#: Seconds between two looks: a change is in force within a second.
_LOOK_SECONDS = 0.3
#: A file changed less than this many seconds ago may change again within one tick of its clock.
_SETTLED_SECONDS = 1.0


class Followed(Generic[_T]):
    """What a file says now.

    A file that cannot be read, or is damaged, is logged; what it said before stays in force.

    Parameters
    ----------
    path : Path
        The file.
    read : callable
        Reads it. Raises `LundProbeError` or `OSError`, here at once.
    """

    def __init__(self, path: Path, read: Callable[[Path], _T]) -> None:
        self._path = path
        self._read = read
        self._seen = _stamp(path)
        self._next = 0.0
        self._complaint = ""
        self._value = read(path)

    def current(self) -> _T:
        """Return what the file says, looking at it at most three times a second."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LOOK_SECONDS
            self._look()
        return self._value

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            value = self._read(self._path)
        except (LundProbeError, OSError) as error:
            if str(error) != self._complaint:
                _LOG.error("%s; what %s said before stays in force", error, self._path)
            self._complaint = str(error)
            return
        if value != self._value or self._complaint:
            _LOG.info("%s has changed", self._path)
        self._value, self._complaint = value, ""


def _stamp(path: Path) -> tuple[object, ...]:
    """Return what differs once a file has changed; always another for one that just did."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        return (error.errno,)
    stamp = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    changed = max(found.st_mtime, found.st_ctime)
    return stamp if time.time() - changed > _SETTLED_SECONDS else (*stamp, time.monotonic())
