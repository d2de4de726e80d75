"""Run a conversion: one dask task a patient, on a local cluster or any running scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol

import dask
from distributed import Client, LocalCluster, as_completed, get_worker
from distributed.comm.core import connect
from distributed.security import Security

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.schema.precision import PRECISIONS, Precision
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.private import require_private

from .claim import announced
from .inventory import Inventory, PatientSource
from .mixing import require_unmixed, strangers
from .patient import PatientResult, convert_patient
from .place import (
    located,
    remove_leftovers,
    remove_unfinished,
    require_usable,
    require_vacant,
)
from .publish import finalise
from .state import Failures, are_current, remember_source
from .workspace import Workspace

#: Topic on which workers report bytes as files are stored.
_TOPIC = "lundprobe-progress"
#: Tasks in the scheduler's hands per worker: enough to keep it busy, few enough for any size.
_AHEAD = 3
#: A scheduler that runs answers within this time.
_PATIENCE_SECONDS = 10.0


class Reporter(Protocol):
    """Hears how a conversion goes."""

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """The work to do: patients and bytes that are not skipped."""

    def advanced(self, source_bytes: int) -> None:
        """A source file has been stored."""

    def finished(self, result: PatientResult) -> None:
        """A patient is done, one way or another."""


class Silent:
    """A reporter that says nothing."""

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Say nothing."""

    def advanced(self, source_bytes: int) -> None:
        """Say nothing."""

    def finished(self, result: PatientResult) -> None:
        """Say nothing."""


@dataclass
class Report:
    """Outcome of a conversion: every patient's result, what was skipped or odd in the source.

    `not_in_source` are patients in the dataset whom the source does not have; their stores stay.
    Not looked for when only some patients were asked for, or a share. `unpublished` is why the
    tables could not be written, where patients failed.
    """

    source: str
    destination: str
    precision: str
    results: list[PatientResult] = field(default_factory=list)
    skipped_folders: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    not_in_source: tuple[str, ...] = ()
    seconds: float = 0.0
    interrupted: bool = False
    unpublished: str | None = None

    def count(self, status: str) -> int:
        """Number of patients with that status."""
        return sum(r.status == status for r in self.results)

    @property
    def failures(self) -> list[PatientResult]:
        """Patients that could not be converted."""
        return [r for r in self.results if r.status == "failed"]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        contents = {
            "source": self.source,
            "destination": self.destination,
            "precision": self.precision,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "unpublished": self.unpublished,
            "counts": {s: self.count(s) for s in ("converted", "skipped", "failed")},
            "skipped_folders": list(self.skipped_folders),
            "findings": list(self.findings),
            "not_in_source": list(self.not_in_source),
            "patients": [r.to_json() for r in self.results],
        }
        path = path.resolve()
        Location(path.parent).write(path.name, (json.dumps(contents, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Options:
    """How to convert: where the work runs, what may be rounded, whether to redo what is done.

    `scratch` is the folder for stores on their way to a bucket; by default the system's for
    temporary files. `allow_public` is to write where anyone can read.
    """

    workers: int | None = None
    scheduler: str | None = None
    precision: Precision = "standard"
    overwrite: bool = False
    publish: bool = True
    scratch: Path | None = None
    allow_public: bool = False


def convert(
    inventory: Inventory,
    destination: Location | Path,
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Convert the patients of `inventory` into the dataset at `destination`, a path or a bucket.

    Patients whose source has not changed are skipped; one that fails fails alone. Afterwards
    tables, manifest and card are written of all stores there (unless `options.publish` is off,
    as for the shares of a job array). An interrupt stops cleanly: the report says so.
    Raises `UsageError` for options that make no sense or clash with what is there, or while another
    conversion is at work on these patients there, and `DatasetError` for a place that cannot be
    written, all before any patient is converted.
    """
    options, reporter = options or Options(), reporter or Silent()
    dataset = located(destination)
    _require_usable(inventory, dataset, options)
    with announced(dataset, [p.patient_id for p in inventory.patients]):
        require_unmixed(inventory, dataset, options.precision, options.overwrite)
        return _convert(inventory, dataset, options, reporter)


def _convert(
    inventory: Inventory, dataset: Location, options: Options, reporter: Reporter
) -> Report:
    started = time.perf_counter()
    report = Report(
        str(inventory.root),
        dataset.url,
        options.precision,
        skipped_folders=inventory.skipped,
        findings=inventory.findings,
        not_in_source=strangers(inventory, dataset) if inventory.is_whole else (),
    )
    remember_source(dataset, inventory)
    todo = _skip_current(inventory, dataset, options, report)
    failures = Failures(dataset)
    for skipped in report.results:
        failures.note(skipped.patient_id, None)
    _convert_all(todo, dataset, options, report, reporter, failures)
    report.seconds = time.perf_counter() - started
    if options.publish and not report.interrupted:
        _publish(dataset, report)
    return report


def _publish(dataset: Location, report: Report) -> None:
    try:
        left_out = finalise(dataset).left_out
    except DatasetError as error:
        if not report.failures:
            raise
        report.unpublished = str(error)  # such as that every patient failed
        return
    report.findings += tuple(f"left out of the tables: {line}" for line in left_out)


def _require_usable(inventory: Inventory, dataset: Location, options: Options) -> None:
    if options.precision not in PRECISIONS:
        raise UsageError(f"precision {options.precision!r}; expected one of {PRECISIONS}")
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}; expected at least 1")
    require_vacant(inventory.root, dataset)
    if options.scratch is not None and options.scratch.resolve().is_relative_to(inventory.root):
        raise UsageError(
            f"--scratch {options.scratch} is in the source {inventory.root}; expected a folder "
            "outside it"
        )
    require_usable(dataset, options.scratch)
    if not options.allow_public:
        require_private(dataset)


def _skip_current(
    inventory: Inventory, dataset: Location, options: Options, report: Report
) -> list[PatientSource]:
    patients = inventory.patients
    remove_unfinished(dataset)
    remove_leftovers(dataset, [p.patient_id for p in patients], options.scratch)
    if options.overwrite:
        return list(patients)
    todo = []
    current = are_current(dataset, patients, options.precision)
    for patient, is_current in zip(patients, current, strict=True):
        if is_current:
            report.results.append(PatientResult(patient.patient_id, "skipped", patient.bytes))
        else:
            todo.append(patient)
    return todo


def _convert_all(
    todo: Sequence[PatientSource],
    dataset: Location,
    options: Options,
    report: Report,
    reporter: Reporter,
    failures: Failures,
) -> None:
    if not todo:
        reporter.started(0, 0, 0)
        return
    task = partial(
        _task,
        dataset=dataset,
        precision=options.precision,
        scratch=None if options.scratch is None else options.scratch.resolve(),
        # Workers of somebody else's cluster have their memory back after each patient.
        keeps_memory=options.scheduler is None,
    )
    try:
        with _client(options, len(todo)) as client:
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            reporter.started(len(todo), sum(p.bytes for p in todo), workers)
            with _subscription(client, reporter.advanced):
                for result in _results(client, task, todo):
                    failures.note(result.patient_id, result.error)
                    report.results.append(result)
                    reporter.finished(result)
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        remove_leftovers(dataset, [p.patient_id for p in todo], options.scratch)


@contextmanager
def _subscription(client: Client, advanced: Callable[[int], None]) -> Iterator[None]:
    """Within, `advanced` hears of the bytes that workers store.

    It ends before the client closes: the scheduler complains of events that it cannot deliver.
    """

    def listen(event: Any) -> None:
        advanced(int(event[1]))

    client.subscribe_topic(_TOPIC, listen)
    try:
        yield
    finally:
        client.unsubscribe_topic(_TOPIC)


@contextmanager
def _client(options: Options, patients: int) -> Iterator[Client]:
    if options.scheduler is not None:
        with _remote_client(options.scheduler) as client:
            yield client
        return
    with ExitStack() as stack:
        with _signals_held():
            cluster = stack.enter_context(_local_cluster(options, patients))
            client = stack.enter_context(Client(cluster))
        yield client


def _remote_client(address: str) -> Client:
    """A client of the scheduler at `address`; raises `UsageError` if none answers there soon."""
    try:
        asyncio.run(asyncio.wait_for(_greet(address), _PATIENCE_SECONDS))
        return Client(address, timeout=_PATIENCE_SECONDS)
    except (OSError, ValueError, MemoryError) as error:
        raise UsageError(
            f"--scheduler {address}: {_silence(error)}; expected the address of a running dask "
            "scheduler, e.g. tcp://10.0.0.1:8786"
        ) from error


def _silence(error: BaseException) -> str:
    if isinstance(error, MemoryError):  # its greeting was read as a length
        return "what answers there is no dask scheduler"
    return str(error) or f"no answer of a dask scheduler within {_PATIENCE_SECONDS:.0f} s"


async def _greet(address: str) -> None:
    """Shake hands with a scheduler; `Client` waits for ever for any other server."""
    comm = await connect(address, **Security().get_connection_args("client"))
    await comm.close()


#: What a worker's malloc does, set before it starts. dask's own setting returns every freed block
#: to the system at once, so that each chunk and slab is fresh pages to be zeroed: at full size
#: that is most of the time. glibc alone reads these; one arena, as one thread does the work.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_ARENA_MAX": "1",
}


def _local_cluster(options: Options, patients: int) -> LocalCluster:
    with dask.config.set({"distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT}):
        return LocalCluster(
            n_workers=min(options.workers or _cpus(), patients),
            threads_per_worker=1,  # decoding and encoding hold the GIL in between
            processes=True,
            dashboard_address=None,
            # No dashboard, but its server starts anyway: on a free port, for this machine alone.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            # A worker told to end amid a heartbeat logs a traceback as an error; what fails for a
            # patient comes back as the task's result.
            silence_logs=logging.CRITICAL,
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; threads and processes started meanwhile never get them.

    Ctrl-C goes to every process of a terminal: workers that took it would die with a traceback
    each, and a cluster that is half started cannot be closed. They end when this process says.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has neither masks nor process groups
        yield
        return
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start the process that frees what killed workers leave, and let it do so without a word.

    Started later, by the first worker, it would let the signals through again.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # handed down as the tracker's command line
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(
    client: Client, task: Callable[[PatientSource], PatientResult], todo: Sequence[PatientSource]
) -> Iterator[PatientResult]:
    """Submit patients, largest first, a bounded number ahead; yield results as they come."""
    waiting = iter(sorted(todo, key=lambda p: -p.bytes))
    patients: dict[Any, PatientSource] = {}
    done = as_completed()

    def submit() -> None:
        patient = next(waiting, None)
        if patient is not None:
            future = client.submit(task, patient, pure=False, retries=0)
            patients[future.key] = patient
            done.add(future)

    for _ in range(_AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))):
        submit()
    for future in done:
        patient = patients.pop(future.key)
        error = future.exception()
        yield future.result() if error is None else _crashed(patient, error)
        future.release()
        submit()


def _crashed(patient: PatientSource, error: BaseException) -> PatientResult:
    """A task that did not return: its worker died, or the converter has a defect."""
    reason = (
        f"{patient.folder}: the conversion broke off ({type(error).__name__}: {error}); a worker "
        "may have run out of memory: try fewer --workers"
    )
    return PatientResult(patient.patient_id, "failed", patient.bytes, error=reason)


def _task(
    patient: PatientSource,
    dataset: Location,
    precision: Precision,
    scratch: Path | None,
    keeps_memory: bool,
) -> PatientResult:
    worker: Any = get_worker()
    progress = partial(worker.log_event, _TOPIC)
    workspace = Workspace()
    if keeps_memory:  # from patient to patient: one thread a worker, so one patient at a time
        workspace = vars(worker).setdefault("lundprobe_workspace", workspace)
    return convert_patient(patient, dataset, precision, progress, scratch, workspace)
