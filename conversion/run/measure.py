"""Compare the segmentations of a dataset's patients: one dask task per patient, as in a conversion.

The source is not needed. A patient's rows are saved when they are complete, so a run that was
killed continues with the others. The tables are written when all patients are measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from lundprobe_zarr.conversion.notes.draft import remove_unfinished, require_usable
from lundprobe_zarr.conversion.notes.lease import lease_patients
from lundprobe_zarr.conversion.run.cluster import Needs, keep_memory, require_fit, run_client
from lundprobe_zarr.conversion.run.tasks import run_here, run_tasks
from lundprobe_zarr.conversion.tables.files import SUFFIX
from lundprobe_zarr.conversion.tables.fragments import load_compared, save_compared
from lundprobe_zarr.conversion.tables.publish import Published, finalise, read_stores, store_names
from lundprobe_zarr.dataset.compared import (
    box_spacing,
    comparable,
    compare_store,
    segmentations,
)
from lundprobe_zarr.errors import DatasetError, LundProbeError, NotADatasetError, UsageError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.suggest import suggestion
from lundprobe_zarr.vocabulary.version import package_version

_LOG = logging.getLogger("lundprobe_zarr.conversion")
#: Stores in memory at a time during the search for patients.
_AT_A_TIME = 64
#: Bytes of segmentations that one process compares in about the time that workers take to start.
_LITTLE_BYTES = 2 << 20


@dataclass(frozen=True)
class MeasureOptions:
    """Settings of a run: workers or scheduler, patients, share i of N, measuring again, publishing.

    Without `patients`, all are measured. Without `workers` and `scheduler`, there is a worker
    process for each core, but none for little data.
    """

    workers: int | None = None
    scheduler: str | None = None
    patients: Sequence[str] = ()
    share: tuple[int, int] | None = None
    overwrite: bool = False
    publish: bool = True


@dataclass
class MeasureReport:
    """Result of a run: patients measured now, measured before, and failed, with the reasons.

    `published` is what `finalise` wrote at the end; None for a share and after an interrupt.
    """

    measured: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    published: Published | None = None


@dataclass(frozen=True)
class MeasureProgress:
    """Callbacks for progress: the number of patients to measure, then each with its error."""

    started: Callable[[int], None] = lambda patients: None
    finished: Callable[[str, str | None], None] = lambda patient_id, error: None


def measure(
    dataset: Location,
    options: MeasureOptions | None = None,
    progress: MeasureProgress | None = None,
) -> MeasureReport:
    """Compare the segmentations of the patients of `dataset`, and write its tables.

    Patients whose contents have not changed since they were measured are skipped, unless
    `options.overwrite`. A failure does not affect other patients; one whose grid is not at right
    angles fails and is left out of the tables. Raises `NotADatasetError` if
    there is no store, and `UsageError` for options that are invalid, for a patient who is not in
    the dataset or has nothing to compare, or while these patients are being converted.
    """
    options, progress = options or MeasureOptions(), progress or MeasureProgress()
    _require_usable(dataset, options)
    looked = _look(dataset)
    chosen = _chosen(dataset, looked.sizes, options)
    report = MeasureReport(failed={i: looked.askew[i] for i in chosen if i in looked.askew})
    if not options.overwrite:
        report.skipped = [i for i in chosen if i in looked.current]
    todo = [i for i in chosen if i not in {*report.skipped, *report.failed}]
    with lease_patients(dataset, todo) as lease:
        remove_unfinished(dataset)
        progress.started(len(todo))
        if todo:
            _measure_all(todo, looked.sizes, dataset, lease, options, report, progress)
    if options.publish and not report.interrupted:
        report.published = finalise(dataset)
    return report


def _require_usable(dataset: Location, options: MeasureOptions) -> None:
    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}", expected="at least 1")
    share, shares = options.share or (1, 1)
    if not 1 <= share <= shares:
        raise UsageError(f"part {share}/{shares}", expected="i/N with 1 <= i <= N, e.g. 3/16")
    if not store_names(dataset):  # nothing is written then, not even a probe
        raise NotADatasetError(
            f"no patient's store in {dataset.path('patients')}",
            where=dataset.url,
            expected="at least one",
            remedy="run `lundprobe-zarr convert` first",
        )
    require_usable(dataset)


@dataclass
class _Looked:
    """Patients who have segmentations to compare, with the bytes to read of each.

    `current` are those measured before. `askew` are those who cannot be measured, whose grids are
    not at right angles, with the reason.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    current: set[str] = field(default_factory=set)
    askew: dict[str, str] = field(default_factory=dict)


def _look(dataset: Location) -> _Looked:
    """Look at the metadata of every store that can be read; `finalise` reports the others."""
    found = _Looked()
    names = store_names(dataset)
    for first in range(0, len(names), _AT_A_TIME):
        stores, _ = read_stores(dataset, names[first : first + _AT_A_TIME])
        stores = [s for s in stores if segmentations(s)]
        for store, rows in zip(stores, load_compared(dataset, stores), strict=True):
            found.sizes[store.patient_id] = _bytes(store)
            if not comparable(store):
                found.askew[store.patient_id] = _why_askew(store)
            elif rows is not None:
                found.current.add(store.patient_id)
    return found


def _why_askew(store: StoreMetadata) -> str:
    try:
        box_spacing(store)
    except DatasetError as error:
        return str(error)
    raise AssertionError("the grid has right angles")


def measurable(dataset: Location) -> list[str]:
    """Return the patients who have segmentations to compare, in order."""
    found = _look(dataset)
    return sorted(set(found.sizes) - set(found.askew))


def _bytes(store: StoreMetadata) -> int:
    groups = ("mri/nnunet", "mri/observers")
    return sum(r.stored_bytes for a, r, _ in store.shards() if a.spec.group in groups)


def _chosen(dataset: Location, sizes: dict[str, int], options: MeasureOptions) -> list[str]:
    """Return the patients of the run or its share, in order."""
    chosen = sorted(sizes)
    if options.patients:
        there = {name.removesuffix(SUFFIX) for name in store_names(dataset)}
        for patient_id in options.patients:
            if patient_id not in there:
                raise UsageError(
                    f"no patient {patient_id} in {dataset.url}",
                    remedy=suggestion(patient_id, sorted(there)),
                )
            if patient_id not in sizes:
                raise UsageError(
                    f"patient {patient_id} has no segmentations of network or observers",
                    where=dataset.url,
                    expected="an extended patient whose store can be read",
                )
        chosen = [i for i in chosen if i in set(options.patients)]
    share, shares = options.share or (1, 1)
    return chosen[share - 1 :: shares]


def _measure_all(
    todo: Sequence[str],
    sizes: dict[str, int],
    dataset: Location,
    lease: str,
    options: MeasureOptions,
    report: MeasureReport,
    progress: MeasureProgress,
) -> None:
    needs = Needs(package_version(), None, dataset, lease)
    try:
        with closing(_results(todo, sizes, needs, options)) as results:
            for patient_id, result in results:
                error = _crashed(result) if isinstance(result, BaseException) else result
                if error is None:
                    report.measured.append(patient_id)
                else:
                    report.failed[patient_id] = error
                progress.finished(patient_id, error)
                _LOG.info("%s %s", patient_id, "measured" if error is None else "failed")
    except KeyboardInterrupt:
        report.interrupted = True


def _results(
    todo: Sequence[str], sizes: dict[str, int], needs: Needs, options: MeasureOptions
) -> Generator[tuple[str, str | BaseException | None], None, None]:
    """Measure patients, largest first; yield results as completed, as `_measure` returns them."""
    little = sum(sizes[i] for i in todo) <= _LITTLE_BYTES
    if options.workers is None and options.scheduler is None and little:
        yield from run_here(partial(_measure, dataset=needs.dataset), todo, sizes.__getitem__)
        return
    with run_client(options.scheduler, options.workers, needs, len(todo)) as client:
        task = partial(_task, needs=needs)
        yield from run_tasks(client, task, todo, sizes.__getitem__)


def _crashed(error: BaseException) -> str:
    return (
        f"the comparison ended early ({type(error).__name__}: {error}); workers may have run out "
        "of memory, or were stopped: try fewer per machine, or run again"
    )


def _task(patient_id: str, needs: Needs) -> str | None:
    require_fit(needs)
    keep_memory()
    return _measure(patient_id, needs.dataset)


def _measure(patient_id: str, dataset: Location) -> str | None:
    """Measure a patient and save the rows; return the reason if that fails."""
    try:
        store = open_store(dataset, patient_id)
        save_compared(dataset, store, compare_store(dataset, store))
    except LundProbeError as error:
        return str(error)
    return None
