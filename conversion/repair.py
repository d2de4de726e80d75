"""Repair a dataset from its source: convert damaged patients again, then write the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lundprobe_zarr.conversion.arrays.patient import PatientResult
from lundprobe_zarr.conversion.notes.state import remembered
from lundprobe_zarr.conversion.run.run import Options, Reporter, Silent, convert
from lundprobe_zarr.conversion.source.inventory import (
    Inventory,
    select,
    with_coarser_levels,
    without_header_text,
)
from lundprobe_zarr.conversion.tables.files import SUFFIX
from lundprobe_zarr.conversion.tables.fragments import drop_fragments
from lundprobe_zarr.conversion.tables.publish import finalise, store_names
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import DatasetError, NotADatasetError, SchemaVersionError
from lundprobe_zarr.integrity.validate import Problem, validate
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.schema.tables import CONTENT, store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store


@dataclass(frozen=True)
class Damage:
    """The problems of a dataset, its conversion settings, and its contents according to its tables.

    `content` is each patient's content hash; None if the tables could not be read.
    """

    problems: tuple[Problem, ...]
    precision: Precision = "standard"
    headers_stripped: bool = False
    levels: int = 0
    content: dict[str, str | None] | None = None

    @property
    def patients(self) -> list[str]:
        """Patients whose stores are damaged or missing, in order."""
        return sorted({p.patient_id for p in self.problems if p.patient_id is not None})

    @property
    def measured(self) -> list[str]:
        """Patients whose measured rows are wrong, in order."""
        return sorted({p.measured for p in self.problems if p.measured is not None})


@dataclass(frozen=True)
class Repair:
    """Result of a repair: patients converted again, changed patients, remaining problems.

    `changed` are patients whose content differs from the old tables, because their source has
    changed. `left` are problems of patients that could not be converted, and problems found by a
    quick validation afterwards.
    """

    found: tuple[Problem, ...]
    results: tuple[PatientResult, ...]
    changed: tuple[str, ...]
    left: tuple[Problem, ...]
    interrupted: bool = False

    @property
    def failures(self) -> list[PatientResult]:
        """Patients that could not be converted again."""
        return [r for r in self.results if r.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-compatible data."""
        return {
            "sound": not self.left and not self.interrupted,
            "interrupted": self.interrupted,
            "found": [vars(p) for p in self.found],
            "converted": [r.to_json() for r in self.results],
            "changed": list(self.changed),
            "left": [vars(p) for p in self.left],
        }


def find_damage(
    dataset: Location,
    deep: bool = False,
    workers: int = 2,
    on_store: Callable[[str], None] = lambda patient_id: None,
) -> Damage:
    """Find the problems of a dataset; write nothing unless its tables cannot be read.

    Unreadable tables are first written again from the readable stores. Raises `NotADatasetError` if
    no patient was ever converted there, and `SchemaVersionError` for a newer dataset.
    """
    try:
        return _look(dataset, deep, workers, on_store)
    except SchemaVersionError:
        raise
    except DatasetError as error:
        first = Problem("tables", str(error))
    notes = remembered(dataset)
    lost = list(_lost(dataset, notes))
    try:
        finalise(dataset)
    except NotADatasetError:
        if not lost:
            raise
        return Damage((first, *lost), **_kind_of(notes.values()))
    seen = _look(dataset, deep, workers, on_store)
    return replace(seen, problems=(first, *lost, *seen.problems), content=None)


def _look(dataset: Location, deep: bool, workers: int, on_store: Callable[[str], None]) -> Damage:
    manifest = open_manifest(dataset)
    problems = validate(dataset, deep, workers, on_store).problems
    content = _content(dataset)
    kind = manifest.precision, manifest.headers_stripped, manifest.levels
    return Damage(problems, *kind, content)


def _content(dataset: Location) -> dict[str, str | None]:
    rows = read_table(dataset, open_manifest(dataset), "patients").to_pylist()
    return {r["patient_id"]: r.get(CONTENT) for r in rows}


def _lost(dataset: Location, notes: Iterable[str]) -> Iterable[Problem]:
    """Yield patients whose store cannot be read, or is missing although there is a note on it."""
    stored = {name.removesuffix(SUFFIX) for name in store_names(dataset)}
    for patient_id in sorted(stored.union(notes)):
        try:
            open_store(dataset, patient_id)
        except SchemaVersionError:
            raise
        except DatasetError as error:
            yield Problem(store_path(patient_id), str(error), patient_id)


def _kind_of(notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the conversion settings in the converter's notes, or defaults."""
    note = next(iter(notes), {})
    return {
        "precision": note.get("precision", "standard"),
        "headers_stripped": bool(note.get("strip_headers", False)),
        "levels": int(note.get("levels", 0)),
    }


def repair(
    inventory: Inventory,
    dataset: Location,
    damage: Damage,
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> Repair:
    """Convert patients with damaged stores again, then write the tables.

    The old conversion settings are used; only workers, scheduler and `scratch` are taken from
    `options`. Wrong measured rows are measured again. A patient that is not in the source, or
    cannot be converted, is listed as failed, and its store is unchanged. Raises like `convert`.
    """
    for patient_id in damage.measured:
        drop_fragments(dataset, patient_id)
    damaged = damage.patients
    known = {p.patient_id for p in inventory.patients}
    results = [_unknown(i, inventory) for i in damaged if i not in known]
    chosen = [i for i in damaged if i in known]
    interrupted = False
    if chosen:
        report = convert(
            _as_before(select(inventory, chosen), damage),
            dataset,
            _options(damage, options),
            reporter or Silent(),
        )
        results, interrupted = [*results, *report.results], report.interrupted
    elif damage.problems:
        finalise(dataset)
    return _outcome(dataset, damage, results, interrupted)


def _unknown(patient_id: str, inventory: Inventory) -> PatientResult:
    reason = (
        f"{patient_id}: not in {inventory.root}; expected the source it was converted from; give "
        "that source, or copy the store from another copy of the dataset; if there is no such "
        "patient, remove the store"
    )
    return PatientResult(patient_id, "failed", 0, error=reason)


def _as_before(inventory: Inventory, damage: Damage) -> Inventory:
    inventory = with_coarser_levels(inventory, damage.levels)
    return without_header_text(inventory) if damage.headers_stripped else inventory


def _options(damage: Damage, options: Options | None) -> Options:
    # allow_public: the dataset's readers do not change.
    return replace(
        options or Options(), precision=damage.precision, overwrite=True, allow_public=True
    )


def _outcome(
    dataset: Location, damage: Damage, results: Sequence[PatientResult], interrupted: bool
) -> Repair:
    if interrupted:
        return Repair(damage.problems, tuple(results), (), damage.problems, True)
    failed = {r.patient_id for r in results if r.status == "failed"}
    left = {p: None for p in damage.problems if p.patient_id in failed}
    try:
        left |= dict.fromkeys(validate(dataset).problems)
        now = _content(dataset)
    except DatasetError as error:
        left[Problem("tables", str(error))] = None
        now = {}
    repaired = [r.patient_id for r in results if r.status == "converted"]
    changed = [i for i in repaired if _differs((damage.content or {}).get(i), now.get(i))]
    return Repair(damage.problems, tuple(results), tuple(changed), tuple(left))


def _differs(before: str | None, now: str | None) -> bool:
    return before is not None and now is not None and before != now
