"""Read-ahead by threads: patches in order, a bounded number in memory, with retries."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from lundprobe_zarr.errors import DamagedStoreError, StreamError, UnknownLabelError, UsageError
from lundprobe_zarr.patches import Item, Plan, RawSample
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.cores import make_way, places, working
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.retry import RetryPolicy
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.forks import reading
from lundprobe_zarr.stream.patch import read_item

#: Longest wait for the threads of a closed stream, seconds.
_CLOSE_TIMEOUT = 1.0

#: Index of a patch, and the future of its result.
_Job = tuple[int, "Future[RawSample | Failure]"]


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
        # Several threads read patches in parallel, so each decodes its patch alone.
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
            with reading(), working():
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
    workers = _WorkerPool(loader, epoch, threads)
    ordered: deque[_Job] = deque()
    try:
        for index in indices:
            ordered.append((index, Future()))
            workers.do(ordered[-1])
            if len(ordered) > prefetch:
                yield _next(ordered, process)
        while ordered:
            yield _next(ordered, process)
    finally:
        if getpid() == process:
            workers.close()


class _WorkerPool:
    """Threads that read submitted patches in order.

    A thread keeps its core from job to job while it need not wait for a server. The number of
    running threads that do not wait is bounded by the cores: switching between threads costs as
    much as decoding some chunks.
    """

    def __init__(self, loader: Loader, epoch: int, threads: int) -> None:
        self._loader, self._epoch, self._threads = loader, epoch, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lundprobe-patches")
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._at_work, self._waiting = 0, 0
        self._idle = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._main = threading.main_thread()

    def do(self, job: _Job) -> None:
        """Submit a patch."""
        with self._lock:
            self._jobs.append(job)
        self._call()

    def close(self) -> None:
        """Start no more jobs; wait for running ones up to a timeout."""
        self._closed.set()
        with self._idle:
            self._jobs.clear()
            have_ended = self._idle.wait_for(lambda: not self._at_work, _CLOSE_TIMEOUT)
        self._pool.shutdown(wait=have_ended)

    def _call(self) -> None:
        """Start one more thread if there is a job and a core for it."""
        with self._lock:
            is_short = self._at_work < self._threads and self._at_work - self._waiting < places()
            if not (is_short and self._jobs) or self._is_over():
                return
            self._at_work += 1
            self._pool.submit(self._work)

    def _is_over(self) -> bool:
        """Return whether the pool is closed or the process is ending."""
        return self._closed.is_set() or not self._main.is_alive()

    def _work(self) -> None:
        with working(self._lent):
            while (job := self._taken()) is not None:
                index, future = job
                try:
                    future.set_result(self._loader.load(self._epoch, index, self._is_over))
                finally:
                    if not future.done():  # unexpected errors go to the caller
                        future.set_exception(sys.exception())
                make_way()

    def _lent(self, is_waiting: bool) -> None:
        with self._lock:
            self._waiting += 1 if is_waiting else -1
        if is_waiting:
            self._call()

    def _taken(self) -> _Job | None:
        """Return the next job, or None if this thread should stop."""
        with self._lock:
            is_one_too_many = self._at_work - self._waiting > places()
            if self._jobs and not is_one_too_many and not self._is_over():
                return self._jobs.popleft()
            self._at_work -= 1
            self._idle.notify_all()
            return None


def _next(ordered: deque[_Job], process: int) -> tuple[int, RawSample | Failure]:
    if os.getpid() != process:
        raise UsageError(
            "this iteration over the stream began before a fork, and its threads "
            "are in the parent process",
            remedy="start a new iteration in this process: iter(stream)",
        )
    index, future = ordered.popleft()
    return index, future.result()
