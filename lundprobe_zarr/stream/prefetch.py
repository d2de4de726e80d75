"""Reading ahead: a few threads, patches in order, a bounded number in memory, failures retried."""

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
from lundprobe_zarr.patches import Draw, Plan, RawSample
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.cores import make_way, places, working
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.retry import RetryPolicy
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.forks import reading

#: Seconds that a stream which is closed waits for its threads.
_FAREWELL = 1.0

#: A patch to read, and what will hold it.
_Job = tuple[int, "Future[RawSample | Failure]"]


@dataclass(frozen=True)
class Failure:
    """A patch that could not be read, with the error to raise or to count."""

    draw: Draw
    error: StreamError


class Loader:
    """Reads draws of a plan, trying again what fails."""

    def __init__(self, plan: Plan, location: Location, retries: int, threads: int) -> None:
        self._plan = plan
        self._location = location
        # Where threads read several patches at a time, each decodes its own alone.
        self._readers = Readers(partial(_open, location, None if threads < 2 else 1))
        self._retry = RetryPolicy.growing(retries)

    def load(
        self, epoch: int, index: int, is_over: Callable[[], bool] = lambda: False
    ) -> RawSample | Failure:
        """A patch, or what became of it in the last of all attempts.

        There are no more attempts once `is_over`.
        """
        draw = self._plan.draw(epoch, index)
        attempts = 0

        def read() -> RawSample:
            nonlocal attempts
            attempts += 1
            with reading(), working():
                return self._plan.read(self._readers.get(draw.patient_id), draw)

        def repeats(error: OSError) -> bool:
            self._drop(draw.patient_id)
            # Damage stays, and was read again if it comes from afar. But the store may be another
            # by now: that shows once it is opened anew.
            most = 2 if isinstance(error, DamagedStoreError) else math.inf
            return attempts < most and not is_over()

        try:
            return self._retry.repeat(read, OSError, repeats)
        except UnknownLabelError as error:  # the patient lacks it; it will not appear
            return Failure(draw, _failed(draw, error, attempts))
        except OSError as error:
            self._drop(draw.patient_id)
            return Failure(draw, _failed(draw, error, attempts))

    def _drop(self, patient_id: str) -> None:
        """Open a patient anew the next time, and read it from where it is, not from the cache."""
        self._readers.drop(patient_id)
        self._location.forget(f"{store_path(patient_id)}/zarr.json")


def _open(location: Location, decoders: int | None, patient_id: str) -> StoreReader:
    reader = StoreReader.open(location, patient_id)
    if decoders is not None:
        reader.decoders = decoders
    return reader


def _failed(draw: Draw, error: Exception, attempts: int) -> StreamError:
    failed = StreamError(
        f"patch {draw.index} of epoch {draw.epoch}, of patient {draw.patient_id}, could not be "
        f"read in {attempts} attempt{'s' if attempts > 1 else ''}: {error}",
        patient=draw.patient_id,
    )
    failed.__cause__ = error
    return failed


def ahead(
    loader: Loader, epoch: int, indices: Iterable[int], threads: int, prefetch: int
) -> Generator[tuple[int, RawSample | Failure], None, None]:
    """Each index with its patch, in order; `prefetch` of them are read before they are asked for.

    Raises `UsageError` in a process that was forked meanwhile, which has not got the threads.
    """
    getpid, process = os.getpid, os.getpid()  # also when the interpreter ends and clears modules
    if not threads:
        yield from ((n, loader.load(epoch, n)) for n in indices)
        return
    crew = _Crew(loader, epoch, threads)
    ordered: deque[_Job] = deque()
    try:
        for index in indices:
            ordered.append((index, Future()))
            crew.do(ordered[-1])
            if len(ordered) > prefetch:
                yield _next(ordered, process)
        while ordered:
            yield _next(ordered, process)
    finally:
        if getpid() == process:
            crew.close()


class _Crew:
    """Threads that read what they are given, in that order.

    Each does one job after another, on the same core as long as it need not wait for a server.
    Only so many are at work and not waiting as cores can keep busy. Where all is at hand, as in a
    cache, those are all: a change from one to another takes as long as decoding some chunks.
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
        """Have a patch read in its turn."""
        with self._lock:
            self._jobs.append(job)
        self._call()

    def close(self) -> None:
        """Begin nothing more; what a server does not let end is not waited for."""
        self._closed.set()
        with self._idle:
            self._jobs.clear()
            have_ended = self._idle.wait_for(lambda: not self._at_work, _FAREWELL)
        self._pool.shutdown(wait=have_ended)

    def _call(self) -> None:
        """Have one more thread work if there is something to do and a core for it."""
        with self._lock:
            is_short = self._at_work < self._threads and self._at_work - self._waiting < places()
            if not (is_short and self._jobs) or self._is_over():
                return
            self._at_work += 1
            self._pool.submit(self._work)

    def _is_over(self) -> bool:
        """Whether nobody wants patches any more; the main thread is gone where a process ends."""
        return self._closed.is_set() or not self._main.is_alive()

    def _work(self) -> None:
        with working(self._lent):
            while (job := self._taken()) is not None:
                index, future = job
                try:
                    future.set_result(self._loader.load(self._epoch, index, self._is_over))
                finally:
                    if not future.done():  # what is not ours to deal with is the caller's to see
                        future.set_exception(sys.exception())
                make_way()

    def _lent(self, is_waiting: bool) -> None:
        with self._lock:
            self._waiting += 1 if is_waiting else -1
        if is_waiting:
            self._call()

    def _taken(self) -> _Job | None:
        """The next job; None if this thread is not to work any longer."""
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
            "this iteration over the stream began in another process, before a "
            "fork, and its threads are there",
            remedy="begin a new one here: iter(stream)",
        )
    index, future = ordered.popleft()
    return index, future.result()
