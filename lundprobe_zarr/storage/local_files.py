"""Files of a dataset on a local disk, read piece by piece into memory that is used again.

A new `bytes` for each piece is fresh memory for the system to provide, and a list of all pieces
has left the processor's cache before the first is decoded.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

import numpy as np

from lundprobe_zarr.storage.cores import Core
from lundprobe_zarr.storage.local import open_local
from lundprobe_zarr.storage.location import Location, Range

_BYTE = np.dtype(np.uint8)


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

    def read(self, wanted: Range, core: Core) -> memoryview:
        """Bytes of a range, good until this core reads the next one; fewer at the file's end.

        Raises `FileNotFoundError` if there is no such file, `DatasetError` if it cannot be read.
        """
        buffer = core.array("bytes", (wanted.stop - wanted.start,), _BYTE).data
        try:
            count = os.preadv(self._descriptor(wanted.name), [buffer], wanted.start)
        except OSError as error:
            raise self._location.explained(error, wanted.name) from None
        return buffer[:count]

    def _descriptor(self, name: str) -> int:
        found = self._descriptors.get(name)
        if found is None:
            with self._lock:
                found = self._descriptors.get(name)
                if found is None:
                    found = self._descriptors[name] = open_local(self._location.local(name))
        return found
