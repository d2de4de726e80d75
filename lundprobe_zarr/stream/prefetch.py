"""Read-ahead by threads: patches in order, a bounded number in memory, with retries.

Patches of one patient that are read ahead anyway are read together: many share chunks, which are
fetched and decoded once.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue

from lundprobe_zarr.errors import (
    DamagedStoreError,
    LundProbeError,
    StreamError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.patches import Item, Plan, RawSample
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.decode_pool import cores
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.retry import RetryPolicy
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.forks import reading
from lundprobe_zarr.stream.patch import read_items

#: Longest wait for the threads of a closed stream, seconds.
_CLOSE_TIMEOUT = 1.0

#: Receives a patch, or the error that was raised. No future, whose lock Ctrl-C may leave locked.
_Found = SimpleQueue["tuple[RawSample | Failure | None, BaseException | None]"]

#: Most patches of a patient that are read together, as many as are in a block of the order.
_TOGETHER = 4


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

    @property
    def together(self) -> int:
        """Most patches that are read together: one if stored voxels, often many, are resampled."""
        return 1 if self._plan.content.spacing_mm else _TOGETHER

    def patient(self, epoch: int, index: int) -> str:
        """Return whose patch it is."""
        return self._plan.item(epoch, index).patient_id

    def load_together(self, epoch: int, indices: Sequence[int]) -> list[RawSample] | None:
        """Read patches of one patient; None if any of them cannot be read, or not at first."""
        items = [self._plan.item(epoch, index) for index in indices]
        try:
            with reading():
                return read_items(self._plan, self._readers.get(items[0].patient_id), items)
        except (LundProbeError, OSError):
            return None

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
                return read_items(self._plan, self._readers.get(item.patient_id), [item])[0]

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
    ordered: dict[int, _Found] = {}
    indices = list(indices)
    # A group for each thread that can decode, and one whose patches are being consumed.
    most = max(1, min(loader.together, prefetch // (min(threads, cores()) + 1)))
    groups = together(indices, partial(loader.patient, epoch), prefetch, most)
    group = next(groups, None)
    try:
        for index in indices:
            while group and (index not in ordered or len(ordered) + len(group) <= prefetch + 1):
                ordered |= readers.order(group)
                group = next(groups, None)
            yield index, _patch(ordered.pop(index), process)
    finally:
        if getpid() == process:
            readers.close()


def together(
    indices: Sequence[int], patient: Callable[[int], str], reach: int, most: int
) -> Iterator[list[int]]:
    """Yield the indices in groups of one patient, in the order of each group's first.

    A group has at most `most` indices, all of them less than `reach` places after its first.
    """
    grouped: set[int] = set()
    patients: deque[str] = deque()
    for place, index in enumerate(indices):
        while place + len(patients) < len(indices) and len(patients) < max(1, reach):
            patients.append(patient(indices[place + len(patients)]))
        whose = patients.popleft()
        if index in grouped:
            grouped.discard(index)
            continue
        later = (indices[place + n] for n, other in enumerate(patients, 1) if other == whose)
        group = [index, *islice((n for n in later if n not in grouped), most - 1)]
        grouped.update(group[1:])
        yield group


class _ReadingThreads:
    """Threads that read the groups of patches that were ordered, first come, first served.

    Each reads one group at a time, and decodes it: of what servers send, no more at a time than
    there are cores (`storage.decode_pool`).
    """

    def __init__(self, loader: Loader, epoch: int, threads: int) -> None:
        self._load = partial(loader.load, epoch, is_over=self._is_over)
        self._load_together = partial(loader.load_together, epoch)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lundprobe-patches")
        self._futures: deque[Future[None]] = deque()
        self._closed = threading.Event()
        self._main = threading.main_thread()

    def order(self, group: Sequence[int]) -> dict[int, _Found]:
        """Have patches of one patient read; return where each is received."""
        found: dict[int, _Found] = {index: SimpleQueue() for index in group}
        while self._futures and self._futures[0].done():
            self._futures.popleft()
        self._futures.append(self._pool.submit(self._read, found))
        return found

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

    def _read(self, found: dict[int, _Found]) -> None:
        if self._is_over():
            return
        waiting = deque(found.values())
        try:
            for patch in self._patches(list(found)):
                waiting.popleft().put((patch, None))
        finally:  # unexpected errors go to the caller
            for queue in waiting:
                queue.put((None, sys.exception()))

    def _patches(self, group: Sequence[int]) -> Iterable[RawSample | Failure]:
        patches = self._load_together(group) if len(group) > 1 else None
        # Alone each has its own retries and its own error.
        return map(self._load, group) if patches is None else patches


def _patch(found: _Found, process: int) -> RawSample | Failure:
    if os.getpid() != process:
        raise UsageError(
            "this iteration over the stream began before a fork, and its threads "
            "are in the parent process",
            remedy="start a new iteration in this process: iter(stream)",
        )
    patch, error = found.get()
    if patch is None:
        assert error is not None
        raise error
    return patch
