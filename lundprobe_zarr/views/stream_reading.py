"""Reading ahead: a few threads, patches in order, a bounded number in memory, failures retried."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from lundprobe_zarr.errors import DamagedStoreError, StreamError, UnknownLabelError, UsageError
from lundprobe_zarr.patches import Draw, Plan, Sample
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.patch import PatchReader
from lundprobe_zarr.store.readers import Readers
from lundprobe_zarr.views.stream_forks import reading

#: Seconds before the first further attempt; each pause is `_GROWTH` times the one before.
_PAUSE, _GROWTH = 0.2, 3.0


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
        self._retries = retries

    def load(self, epoch: int, index: int) -> Sample | Failure:
        """A patch, or what became of it in the last of all attempts."""
        draw = self._plan.draw(epoch, index)
        pause, most = _PAUSE, self._retries + 1
        for attempt in range(1, most + 1):
            try:
                with reading():
                    return self._plan.read(self._readers.get(draw.patient_id), draw)
            except UnknownLabelError as error:  # the patient lacks it; it will not appear
                return Failure(draw, _failed(draw, error, attempt))
            except OSError as error:
                self._drop(draw.patient_id)
                failure = Failure(draw, _failed(draw, error, attempt))
                # Damage stays, and was read again if it comes from afar. But the store may be
                # another by now: that shows once it is opened anew.
                most = min(most, 2) if isinstance(error, DamagedStoreError) else most
            if attempt >= most:
                break
            time.sleep(pause)
            pause *= _GROWTH
        return failure

    def _drop(self, patient_id: str) -> None:
        """Open a patient anew the next time, and read it from where it is, not from the cache."""
        self._readers.drop(patient_id)
        self._location.forget(f"{store_path(patient_id)}/zarr.json")


def _open(location: Location, decoders: int | None, patient_id: str) -> PatchReader:
    reader = PatchReader.open(location, patient_id)
    if decoders is not None:
        reader.decoders = decoders
    return reader


def _failed(draw: Draw, error: Exception, attempts: int) -> StreamError:
    text = (
        f"patch {draw.index} of epoch {draw.epoch}, of patient {draw.patient_id}, could not be "
        f"read in {attempts} attempt{'s' if attempts > 1 else ''}: {error}"
    )
    failed = StreamError(text)
    failed.__cause__ = error
    return failed


def ahead(
    loader: Loader, epoch: int, indices: Iterable[int], threads: int, prefetch: int
) -> Generator[tuple[int, Sample | Failure], None, None]:
    """Each index with its patch, in order; `prefetch` of them are read before they are asked for.

    Raises `UsageError` in a process that was forked meanwhile, which has not got the threads.
    """
    process = os.getpid()
    if not threads:
        yield from ((n, loader.load(epoch, n)) for n in indices)
        return
    waiting: deque[tuple[int, Future[Sample | Failure]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lundprobe-patches")
    try:
        for index in indices:
            waiting.append((index, pool.submit(loader.load, epoch, index)))
            if len(waiting) > prefetch:
                yield _next(waiting, process)
        while waiting:
            yield _next(waiting, process)
    finally:
        if os.getpid() == process:
            pool.shutdown(wait=True, cancel_futures=True)


def _next(
    waiting: deque[tuple[int, Future[Sample | Failure]]], process: int
) -> tuple[int, Sample | Failure]:
    if os.getpid() != process:
        raise UsageError(
            "this iteration over the stream began in another process, before a fork, and its "
            "threads are there; begin a new one here: iter(stream)"
        )
    index, future = waiting.popleft()
    return index, future.result()
