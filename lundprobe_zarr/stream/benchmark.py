"""Benchmark of patch reading from a disk or bucket, with recommended settings."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import Content, Plan, UniformSampling
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.retry import UNKNOWN
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.prefetch import Failure, Loader, ahead

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort
    from lundprobe_zarr.geometry.lattice import Shape

#: Thread counts to try: multiples of the cores for a disk, absolute for remote data.
_LOCAL_TRIED, _REMOTE_TRIED = (1, 2), (4, 16, 32)
#: A setting is recommended over a smaller one only if it is faster by this factor.
_WORTH = 1.1
#: Below this share of decoded voxels inside the patch, larger patches are recommended.
_WELL_USED = 0.5


class MeteredLocation(Location):
    """A location that counts requests, bytes and response time."""

    def __init__(self, inner: Location) -> None:
        self.__dict__.update(inner.__dict__)
        self._meter = threading.Lock()
        self.requests, self.bytes, self.seconds = 0, 0, 0.0

    def _timed(self, call: Callable[[], list[bytes]]) -> list[bytes]:
        started = time.perf_counter()
        found = call()
        with self._meter:
            self.seconds += time.perf_counter() - started
            self.requests += len(found)
            self.bytes += sum(map(len, found))
        return found

    def read(self, relative: str, size: int = UNKNOWN) -> bytes:
        """As `Location.read`."""
        return self._timed(lambda: [super(MeteredLocation, self).read(relative, size)])[0]

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """As `Location.read_ranges`."""
        return self._timed(lambda: super(MeteredLocation, self).read_ranges(ranges))


@dataclass(frozen=True)
class Traffic:
    """What an epoch of `patches` patches of `patients` patients asks a server for."""

    patches: int
    patients: int
    requests: float
    bytes: float


@dataclass(frozen=True)
class Read:
    """What one patch took: seconds, requests and bytes; `is_first` of its patient."""

    is_first: bool
    seconds: float
    requests: int
    bytes: int


@dataclass(frozen=True)
class Benchmark:
    """Results for one kind of patch; times in seconds.

    `latencies` are those of patches read one by one; `fetching` is the share of their sum spent
    waiting for bytes, including opening patients. `rates` maps threads that read ahead to patches
    per second. `used` is the share of decoded voxels inside the patch, `chunk` the stored chunk
    (z, y, x). `processor` is the processor time of all patches read one by one, `epoch` what a
    whole epoch asks for.
    """

    patch: str
    patches: int
    latencies: list[float]
    fetching: float
    requests: int
    bytes: int
    voxel_bytes: int
    used: float
    chunk: Shape
    local: bool
    rates: dict[int, float] = field(default_factory=dict)
    processor: float = 0.0
    epoch: Traffic | None = None

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies, seconds."""
        return float(np.percentile(self.latencies, percent))

    @property
    def threads(self) -> int:
        """The smallest number of threads that is about as fast as the best."""
        best = max(self.rates.values())
        return min(n for n, rate in self.rates.items() if rate * _WORTH >= best)

    def recommendations(self) -> list[str]:
        """Return recommended settings with reasons, one sentence each."""
        share = self.fetching / sum(self.latencies)
        found = [
            f"threads={self.threads}: {self.rates[self.threads]:.1f} patches/s; DataLoader workers "
            "only for what your own transforms cost"
        ]
        if not self.local and share > 1 / 2:
            found.append(
                f"cache='FOLDER': {share:.0%} of a patch's time is waiting for the network, which "
                "later epochs then do not"
            )
        if self.used < _WELL_USED:
            z, y, x = self.chunk
            found.append(
                f"{self.used:.0%} of the decoded voxels are in the patch: chunks are {z}×{y}×{x} "
                "voxels, so larger patches waste less"
            )
        return found


def benchmark(
    cohort: Cohort,
    patch_size: Sequence[int],
    structures: Sequence[str] = (),
    patches: int = 48,
    seed: int = 0,
    per_patient: int = 32,
) -> Benchmark:
    """Measure T2w patches with masks of `structures` at random locations of a cohort.

    Read `patches` patches one by one, then as many for each number of threads. On a disk, the page
    cache counts as read. An epoch is taken to have `per_patient` patches of each patient, who is
    opened once. Raise as a stream does.
    """
    if patches < 1:
        raise UsageError(f"{patches} patches", expected="at least 1")
    each = -(-patches // len(cohort))
    content = Content(structures=structures)
    plan = Plan(cohort, content, patch_size, sampling=UniformSampling(each), seed=seed)
    count = min(patches, len(plan))
    metered = MeteredLocation(cohort.location)
    used_before = time.process_time()
    reads = _one_by_one(plan, metered, count)
    processor = time.process_time() - used_before
    sizes = [plan.size(plan.item(0, n).patient_id) for n in range(count)]
    used, chunk = _used(plan, count)
    local = cohort.location.is_local
    return Benchmark(
        patch="×".join(map(str, patch_size)) + " of T2w"
        + (f" and {', '.join(structures)}" if structures else ""),
        patches=count,
        latencies=[read.seconds for read in reads],
        fetching=metered.seconds,
        requests=metered.requests,
        bytes=metered.bytes,
        voxel_bytes=int(statistics.mean(map(prod, sizes))) * content.voxel_bytes,
        used=used,
        chunk=chunk,
        local=local,
        rates={n: _rate(plan, count, n) for n in _tried(local)},
        processor=processor,
        epoch=_epoch(reads, len(cohort), per_patient),
    )  # fmt: skip


def _tried(local: bool) -> list[int]:
    cores = os.cpu_count() or 1
    return sorted({1, *(cores * n for n in _LOCAL_TRIED)}) if local else list(_REMOTE_TRIED)


def _one_by_one(plan: Plan, location: MeteredLocation, count: int) -> list[Read]:
    loader, reads = Loader(plan, location, retries=0, threads=0), []
    seen: set[str] = set()
    for number in range(count):
        before, started = (location.requests, location.bytes), time.perf_counter()
        found = loader.load(0, number)
        seconds = time.perf_counter() - started
        if isinstance(found, Failure):
            raise found.error
        patient = plan.item(0, number).patient_id
        asked = location.requests - before[0], location.bytes - before[1]
        reads.append(Read(patient not in seen, seconds, *asked))
        seen.add(patient)
    return reads


def _epoch(reads: Sequence[Read], patients: int, per_patient: int) -> Traffic:
    """Return what an epoch asks for: a patient's first patch opens it, and the others do not.

    Where no patient was read from twice, every patch counts as a first one.
    """
    first = [read for read in reads if read.is_first]
    later = [read for read in reads if not read.is_first] or first

    def total(what: str) -> float:
        opening, patch = (
            statistics.mean(getattr(r, what) for r in some) for some in (first, later)
        )
        return float(patients * (opening + (per_patient - 1) * patch))

    return Traffic(patients * per_patient, patients, total("requests"), total("bytes"))


def _rate(plan: Plan, count: int, threads: int) -> float:
    """Return patches per second with read-ahead and cold readers."""
    loader = Loader(plan, plan.cohort.location, retries=0, threads=threads)
    started = time.perf_counter()
    for _, found in ahead(loader, 1, range(count), threads, 2 * threads):
        if isinstance(found, Failure):
            raise found.error
    return count / (time.perf_counter() - started)


def _used(plan: Plan, count: int) -> tuple[float, Shape]:
    """Return the share of decoded voxels inside the patches, and the chunk (z, y, x)."""
    inside, touched, chunk = 0, 0, (0, 0, 0)
    readers = Readers(partial(StoreReader.open, plan.cohort.location))
    for item in (plan.item(0, number) for number in range(count)):
        reader = readers.get(item.patient_id)
        chunk, size = reader.array("mri/image").chunk, plan.size(item.patient_id)
        chunks = [
            -(-(a + s) // c) - a // c
            for a, s, c in zip(plan.start(reader.metadata, item), size, chunk, strict=True)
        ]
        inside += prod(size)
        touched += prod(chunks) * prod(chunk)
    return inside / touched, chunk
