"""Readers of the patients used last, shared by threads: each patient is opened once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.stores.reader import StoreReader

K = TypeVar("K", bound=Hashable)

#: Patients kept open: what is kept of one is its metadata and its shards' indices, some 100 kB.
_MOST = 64


class Readers(Generic[K]):
    """What `open_reader` gives for each key, kept for those used last.

    The first caller opens a key; others wait. A key that could not be opened is opened again on
    next use. Pickles with `open_reader` only, and starts empty in a forked process.
    """

    def __init__(self, open_reader: Callable[[K], StoreReader]) -> None:
        self._open_reader = open_reader
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_reader": self._open_reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()

    def forget(self) -> None:
        """Let go of all readers."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._opened: OrderedDict[K, Future[StoreReader]] = OrderedDict()

    def get(self, key: K) -> StoreReader:
        """The reader of `key`; raises as `open_reader` does."""
        if self._process != os.getpid():  # forked: what the parent was opening never ends here
            self.forget()
        with self._lock:
            is_first = key not in self._opened
            future = self._opened.setdefault(key, Future())
            self._opened.move_to_end(key)
            if len(self._opened) > _MOST:
                self._opened.popitem(last=False)
        if is_first:
            self._open(key, future)
        return future.result()

    def _open(self, key: K, future: Future[StoreReader]) -> None:
        try:
            future.set_result(self._open_reader(key))
        except (LundProbeError, OSError) as error:
            self.drop(key)
            future.set_exception(error)
        finally:
            if not future.done():  # anything else is ours to see, and nobody else's to wait for
                self.drop(key)
                future.cancel()

    def drop(self, key: K) -> None:
        """Open `key` again on next use: the cached reader may be wrong."""
        with self._lock:
            self._opened.pop(key, None)
