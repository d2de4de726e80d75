"""Run a conversion: one dask task per patient, on a local cluster or any running scheduler."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lundprobe_zarr.conversion.arrays.patient import PatientResult, convert_patient
from lundprobe_zarr.conversion.notes.draft import (
    located,
    remove_leftovers,
    remove_unfinished,
    require_usable,
    require_vacant,
)
from lundprobe_zarr.conversion.notes.lease import lease_patients
from lundprobe_zarr.conversion.notes.state import Failures, are_current, remember_source
from lundprobe_zarr.conversion.run.cluster import Needs, keep_memory, require_fit, run_client
from lundprobe_zarr.conversion.run.compatibility import absent_from_source, require_compatible
from lundprobe_zarr.conversion.run.tasks import run_here, run_tasks
from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource
from lundprobe_zarr.conversion.source.workspace import Workspace
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.schema.precision import PRECISIONS, Precision
from lundprobe_zarr.storage.access import require_private
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.version import package_version

if TYPE_CHECKING:  # takes 0.4 s to import: imported where it is needed
    from distributed import Client

_LOG = logging.getLogger("lundprobe_zarr.conversion")
#: Bytes of source files that one process converts in about the time that workers take to start.
_LITTLE_BYTES = 32 << 20
#: A patient, and the result or the error of the task.
Outcome = tuple[PatientSource, PatientResult | BaseException]


class Reporter(Protocol):
    """Receives the progress of a conversion."""

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Receive the patients and bytes not skipped; `workers` is 0 without a cluster."""

    def advanced(self, source_bytes: int) -> None:
        """Receive the size of a source file that has been stored."""

    def finished(self, result: PatientResult) -> None:
        """Receive the result of a patient."""


class Silent:
    """A reporter that ignores all progress."""

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Do nothing."""

    def advanced(self, source_bytes: int) -> None:
        """Do nothing."""

    def finished(self, result: PatientResult) -> None:
        """Do nothing."""


@dataclass
class Report:
    """Result of a conversion: every patient's result, skipped folders and findings of the source.

    `not_in_source` are patients of the dataset who are not in the source. Their stores are kept. It
    is empty if only some patients or a share were selected. `unpublished` is the reason why the
    tables could not be written after failures. `left_out` are unreadable stores of other patients,
    which are not in the tables, with the reasons. `unmeasured` are patients of the dataset whose
    segmentations `measure` has not compared.
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
    left_out: tuple[str, ...] = ()
    headers_stripped: bool = False
    levels: int = 0
    unmeasured: tuple[str, ...] = ()

    def count(self, status: str) -> int:
        """Return the number of patients with that status."""
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
            "left_out": list(self.left_out),
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
    """Settings of a conversion: workers or scheduler, precision, overwriting, publishing.

    Without `workers` and `scheduler`, there is a worker process for each core, but none for little
    data: that is converted in this process, before workers would have started.
    `scratch` is the folder for stores before their upload to a bucket; by default the system's for
    temporary files. `allow_public` permits a destination that anyone can read. With `checksum`,
    changed source files are detected by their hashes, not by sizes and times.
    """

    workers: int | None = None
    scheduler: str | None = None
    precision: Precision = "standard"
    overwrite: bool = False
    publish: bool = True
    scratch: Path | None = None
    allow_public: bool = False
    checksum: bool = False


def convert(
    inventory: Inventory,
    destination: Location | Path,
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Convert the patients of `inventory` into the dataset at `destination`, a path or a bucket.

    Patients whose source has not changed are skipped. A failure does not affect other patients.
    Finally tables, manifest and card of all stores are written, unless `options.publish` is off (as
    for the shares of a job array). After an interrupt the report has `interrupted`. Before any
    patient is converted, `UsageError` is raised for options that are invalid or incompatible with
    the dataset, or while another conversion of these patients is running, and `DatasetError` for a
    destination that cannot be written.
    """
    options, reporter = options or Options(), reporter or Silent()
    dataset = located(destination)
    _require_usable(inventory, dataset, options)
    with lease_patients(dataset, [p.patient_id for p in inventory.patients]) as lease:
        require_compatible(inventory, dataset, options.precision, options.overwrite)
        return _convert(inventory, dataset, options, reporter, lease)


def _convert(
    inventory: Inventory, dataset: Location, options: Options, reporter: Reporter, lease: str
) -> Report:
    started = time.perf_counter()
    report = Report(
        str(inventory.root),
        dataset.url,
        options.precision,
        headers_stripped=inventory.strips_headers,
        levels=inventory.levels,
        skipped_folders=inventory.skipped,
        findings=inventory.findings,
        not_in_source=absent_from_source(inventory, dataset) if inventory.is_whole else (),
    )
    remember_source(dataset, inventory)
    todo = _skip_current(inventory, dataset, options, report)
    failures = Failures(dataset)
    for skipped in report.results:
        failures.note(skipped.patient_id, None)
    needs = _needs(inventory, dataset, options, lease)
    _LOG.info("%d patients to convert, %d skipped", len(todo), len(report.results))
    _convert_all(todo, needs, options, report, reporter, failures)
    report.seconds = time.perf_counter() - started
    if options.publish and not report.interrupted:
        _publish(dataset, report)
    return report


def _publish(dataset: Location, report: Report) -> None:
    try:
        published = finalise(dataset)
    except DatasetError as error:
        if not report.failures:
            raise
        report.unpublished = str(error)  # for example, because every patient failed
    else:
        report.left_out, report.unmeasured = published.left_out, published.unmeasured


def _require_usable(inventory: Inventory, dataset: Location, options: Options) -> None:
    if options.precision not in PRECISIONS:
        raise UsageError(f"precision {options.precision!r}", expected=f"one of {PRECISIONS}")
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}", expected="at least 1")
    require_vacant(inventory.root, dataset)
    if options.scratch is not None and options.scratch.resolve().is_relative_to(inventory.root):
        raise UsageError(
            f"--scratch {options.scratch} is in the source {inventory.root}",
            expected="a folder outside it",
        )
    require_usable(dataset, options.scratch)
    if not options.allow_public:
        require_private(dataset)


def current_patients(
    dataset: Location, inventory: Inventory, options: Options
) -> list[PatientSource]:
    """Return the patients that need not be converted again; write nothing."""
    patients = inventory.patients
    current = are_current(
        dataset, patients, options.precision, note=False, checksum=options.checksum
    )
    return [p for p, is_current in zip(patients, current, strict=True) if is_current]


def _skip_current(
    inventory: Inventory, dataset: Location, options: Options, report: Report
) -> list[PatientSource]:
    patients = inventory.patients
    remove_unfinished(dataset)
    remove_leftovers(dataset, [p.patient_id for p in patients], options.scratch, alone=True)
    if options.overwrite:
        return list(patients)
    todo = []
    current = are_current(dataset, patients, options.precision, checksum=options.checksum)
    for patient, is_current in zip(patients, current, strict=True):
        if is_current:
            report.results.append(PatientResult(patient.patient_id, "skipped", patient.bytes))
        else:
            todo.append(patient)
    return todo


def _needs(inventory: Inventory, dataset: Location, options: Options, lease: str) -> Needs:
    scratch = None if options.scratch is None else options.scratch.resolve()
    return Needs(package_version(), inventory.root, dataset, lease, scratch)


def _convert_all(
    todo: Sequence[PatientSource],
    needs: Needs,
    options: Options,
    report: Report,
    reporter: Reporter,
    failures: Failures,
) -> None:
    if not todo:
        reporter.started(0, 0, 0)
        return
    try:
        # Closed immediately: workers must have ended before their leftovers are removed.
        with closing(_results(todo, needs, options, reporter)) as results:
            for result in results:
                failures.note(result.patient_id, result.error)
                report.results.append(result)
                reporter.finished(result)
                _LOG.info("%s %s", result.patient_id, result.status)
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        remove_leftovers(needs.dataset, [p.patient_id for p in todo], needs.scratch, alone=True)


def _results(
    todo: Sequence[PatientSource], needs: Needs, options: Options, reporter: Reporter
) -> Generator[PatientResult, None, None]:
    """Convert patients, largest first; yield results as completed."""
    here = options.workers is None and options.scheduler is None and _bytes(todo) <= _LITTLE_BYTES
    convert_each = _converted_here if here else _converted_by_workers
    with closing(convert_each(todo, needs, options, reporter)) as outcomes:
        for patient, result in outcomes:
            yield _crashed(patient, result) if isinstance(result, BaseException) else result


def _bytes(patients: Sequence[PatientSource]) -> int:
    return sum(p.bytes for p in patients)


def _converted_here(
    todo: Sequence[PatientSource], needs: Needs, options: Options, reporter: Reporter
) -> Generator[Outcome, None, None]:
    """Convert patients in this process."""
    reporter.started(len(todo), _bytes(todo), 0)
    workspace = Workspace()

    def task(patient: PatientSource) -> PatientResult:
        return convert_patient(
            patient,
            needs.dataset,
            options.precision,
            reporter.advanced,
            needs.scratch,
            workspace,
        )

    yield from run_here(task, todo, lambda p: p.bytes)


def _converted_by_workers(
    todo: Sequence[PatientSource], needs: Needs, options: Options, reporter: Reporter
) -> Generator[Outcome, None, None]:
    """Convert patients on a cluster."""
    topic = f"lundprobe-progress-{uuid.uuid4().hex}"  # the cluster may have other users
    task = partial(
        _task,
        needs=needs,
        precision=options.precision,
        topic=topic,
        # On a shared cluster, memory is released after each patient.
        keeps_workspace=options.scheduler is None,
    )
    with run_client(options.scheduler, options.workers, needs, len(todo)) as client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        reporter.started(len(todo), _bytes(todo), workers)
        with _subscription(client, topic, reporter.advanced):
            yield from run_tasks(client, task, todo, lambda p: p.bytes)


@contextmanager
def _subscription(client: Client, topic: str, advanced: Callable[[int], None]) -> Iterator[None]:
    """Call `advanced` with the bytes that workers store.

    The subscription must end before the client closes, or the scheduler logs undelivered events.
    """

    def listen(event: Any) -> None:
        advanced(int(event[1]))

    client.subscribe_topic(topic, listen)
    try:
        yield
    finally:
        client.unsubscribe_topic(topic)


def _crashed(patient: PatientSource, error: BaseException) -> PatientResult:
    """Return the result of a task that failed: its worker ended, or the converter has a bug."""
    reason = (
        f"{patient.folder}: the conversion ended early ({type(error).__name__}: {error}); workers "
        "may have run out of memory, or were stopped: try fewer per machine, or run again"
    )
    return PatientResult(patient.patient_id, "failed", patient.bytes, error=reason)


def _task(
    patient: PatientSource, needs: Needs, precision: Precision, topic: str, keeps_workspace: bool
) -> PatientResult:
    from distributed import get_worker

    require_fit(needs)
    keep_memory()
    worker: Any = get_worker()
    progress = partial(worker.log_event, topic)
    workspace = Workspace()
    if keeps_workspace:  # safe: a worker has one thread, so it converts one patient at a time
        workspace = vars(worker).setdefault("lundprobe_workspace", workspace)
    return convert_patient(patient, needs.dataset, precision, progress, needs.scratch, workspace)
