"""Files of a dataset on a local disk, read piece by piece into memory that is used again.

A new `bytes` for each piece is fresh memory for the system to provide, and a list of all pieces
has left the processor's cache before the first is decoded.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from types import TracebackType

from lundprobe_zarr.store.location import Location, Range

_SCRATCH = threading.local()


class LocalFiles:
    """Open files of `location`, a local one, for the time of one `with`; threads may share it."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> LocalFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, wanted: Range) -> memoryview:
        """Bytes of a range, good until this thread reads the next one; fewer at the file's end.

        Raises `FileNotFoundError` if there is no such file, `DatasetError` if it cannot be read.
        """
        return self._location._do(wanted.name, partial(self._read, wanted))

    def _read(self, wanted: Range) -> memoryview:
        buffer = _scratch(wanted.stop - wanted.start)
        count = os.preadv(self._descriptor(wanted.name), [buffer], wanted.start)
        return buffer[:count]

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._descriptors:
                flags = os.O_RDONLY | os.O_CLOEXEC
                self._descriptors[name] = os.open(self._location.local(name), flags)
            return self._descriptors[name]


def _scratch(size: int) -> memoryview:
    """`size` bytes of this thread's."""
    if len(getattr(_SCRATCH, "buffer", b"")) < size:
        _SCRATCH.buffer = bytearray(size)
    return memoryview(_SCRATCH.buffer)[:size]
