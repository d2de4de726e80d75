"""Read-ahead by threads: patches in order, a bounded number in memory, with retries."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from lundprobe_zarr.errors import DamagedStoreError, StreamError, UnknownLabelError, UsageError
from lundprobe_zarr.patches import Item, Plan, RawSample
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.retry import RetryPolicy
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.forks import reading
from lundprobe_zarr.stream.patch import read_item

#: Longest wait for the threads of a closed stream, seconds.
_CLOSE_TIMEOUT = 1.0

#: Receives a patch, or the error that was raised. No future, whose lock Ctrl-C may leave locked.
_Found = SimpleQueue["tuple[RawSample | Failure | None, BaseException | None]"]
_Ordered = tuple[int, _Found]


@dataclass(frozen=True)
class Failure:
    """A patch that could not be read, with its error."""

    item: Item
    error: StreamError


class Loader:
    """Reader of a plan's items with retries."""

    def __init__(self, plan: Plan, location: Location, retries: int, threads: int) -> None:
        self._plan = plan
        self._location = location
        # Several threads read patches in parallel, so each patch is decoded as one task.
        self._readers = Readers(partial(_open, location, None if threads < 2 else 1))
        self._retry = RetryPolicy.growing(retries)

    def load(
        self, epoch: int, index: int, is_over: Callable[[], bool] = lambda: False
    ) -> RawSample | Failure:
        """Read a patch, or return the failure of the last attempt.

        Stop retrying once `is_over()` is true.
        """
        item = self._plan.item(epoch, index)
        attempts = 0

        def read() -> RawSample:
            nonlocal attempts
            attempts += 1
            with reading():
                return read_item(self._plan, self._readers.get(item.patient_id), item)

        def repeats(error: OSError) -> bool:
            self._drop(item.patient_id)
            # Damage is permanent, and remote data were reread already. But the store may have been
            # replaced, which shows when it is reopened: so try once more.
            most = 2 if isinstance(error, DamagedStoreError) else math.inf
            return attempts < most and not is_over()

        try:
            return self._retry.repeat(read, OSError, repeats)
        except UnknownLabelError as error:  # permanent: the patient lacks it
            return Failure(item, _failed(item, error, attempts))
        except OSError as error:
            self._drop(item.patient_id)
            return Failure(item, _failed(item, error, attempts))

    def _drop(self, patient_id: str) -> None:
        """Reopen a patient the next time, and bypass the cache."""
        self._readers.drop(patient_id)
        self._location.forget(f"{store_path(patient_id)}/zarr.json")


def _open(location: Location, decoders: int | None, patient_id: str) -> StoreReader:
    reader = StoreReader.open(location, patient_id)
    if decoders is not None:
        reader.decoders = decoders
    return reader


def _failed(item: Item, error: Exception, attempts: int) -> StreamError:
    failed = StreamError(
        f"patch {item.index} of epoch {item.epoch}, of patient {item.patient_id}, could not be "
        f"read in {attempts} attempt{'s' if attempts > 1 else ''}: {error}",
        patient=item.patient_id,
    )
    failed.__cause__ = error
    return failed


def ahead(
    loader: Loader, epoch: int, indices: Iterable[int], threads: int, prefetch: int
) -> Generator[tuple[int, RawSample | Failure], None, None]:
    """Return each index with its patch, in order; read up to `prefetch` patches ahead.

    Raise `UsageError` in a child forked during the iteration, which lacks the threads.
    """
    getpid, process = os.getpid, os.getpid()  # kept for interpreter shutdown, which clears modules
    if not threads:
        yield from ((n, loader.load(epoch, n)) for n in indices)
        return
    readers = _ReadingThreads(loader, epoch, threads)
    ordered: deque[_Ordered] = deque()
    try:
        for index in indices:
            ordered.append(readers.order(index))
            if len(ordered) > prefetch:
                yield _next(ordered, process)
        while ordered:
            yield _next(ordered, process)
    finally:
        if getpid() == process:
            readers.close()


class _ReadingThreads:
    """Threads that read the patches that were ordered, first come, first served.

    Each reads one patch at a time, and decodes it: of what servers send, no more at a time than
    there are cores (`storage.decode_pool`).
    """

    def __init__(self, loader: Loader, epoch: int, threads: int) -> None:
        self._load = partial(loader.load, epoch, is_over=self._is_over)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lundprobe-patches")
        self._futures: deque[Future[None]] = deque()
        self._closed = threading.Event()
        self._main = threading.main_thread()

    def order(self, index: int) -> _Ordered:
        """Have a patch read."""
        found: _Found = SimpleQueue()
        while self._futures and self._futures[0].done():
            self._futures.popleft()
        self._futures.append(self._pool.submit(self._read, index, found))
        return index, found

    def close(self) -> None:
        """Start no more patches; wait for running ones up to a timeout."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        started = [future for future in self._futures if not future.cancelled()]
        _, running = wait(started, _CLOSE_TIMEOUT)
        self._pool.shutdown(wait=not running)

    def _is_over(self) -> bool:
        """Return whether these threads are closed or the process is ending."""
        return self._closed.is_set() or not self._main.is_alive()

    def _read(self, index: int, found: _Found) -> None:
        if self._is_over():
            return
        patch: RawSample | Failure | None = None
        try:
            patch = self._load(index)
        finally:  # unexpected errors go to the caller
            found.put((patch, sys.exception()))


def _next(ordered: deque[_Ordered], process: int) -> tuple[int, RawSample | Failure]:
    if os.getpid() != process:
        raise UsageError(
            "this iteration over the stream began before a fork, and its threads "
            "are in the parent process",
            remedy="start a new iteration in this process: iter(stream)",
        )
    index, found = ordered.popleft()
    patch, error = found.get()
    if patch is None:
        assert error is not None
        raise error
    return index, patch
