"""Validate a dataset: quickly by object sizes, or deeply by every byte.

The quick check reads metadata and tables and lists objects. The deep check decodes every chunk
(checksums), hashes every shard and compares every mask with its row. It also rebuilds every NIfTI
file that was stored exactly, and compares its hash with the original's.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import zarr

from lundprobe_zarr.dataset.content import read_content, voxels_sha256
from lundprobe_zarr.dataset.converter_notes import Absent, absent
from lundprobe_zarr.dataset.derive import array_rows, patient_row
from lundprobe_zarr.dataset.objects import object_sizes, store_objects
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.dataset.rows import Row, RowsByPatient
from lundprobe_zarr.errors import DatasetError, sentence
from lundprobe_zarr.integrity.levels import level_finding
from lundprobe_zarr.integrity.measured import (
    AllMeasured,
    Measured,
    mask_finding,
    read_measured,
    table_findings,
)
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import CONTENT, PATIENTS, store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import LevelShard, StoreMetadata, VolumeArray
from lundprobe_zarr.stores.nifti_bytes import nifti_parts
from lundprobe_zarr.stores.opening import open_store, read_store
from lundprobe_zarr.stores.reader import StoreReader

_LOG = logging.getLogger("lundprobe_zarr.integrity")
#: Settings of a conversion that both a store's attributes and the manifest hold.
_KINDS = ("precision", "synthetic", "headers_stripped")


@dataclass(frozen=True)
class Problem:
    """One problem: where, what was found, what was expected.

    `patient_id` names the patient to convert or copy again; None if finalising repairs it, after
    the patient `measured`, if any, was measured again.
    """

    where: str
    finding: str
    patient_id: str | None = None
    measured: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.finding}"


@dataclass(frozen=True)
class Validation:
    """Outcome: depth, number of stores and volumes checked, and problems.

    `absent` says which patients of the source are not in the dataset. That is no problem. None if
    no such patient is known.
    """

    deep: bool
    stores: int
    volumes: int
    problems: tuple[Problem, ...]
    absent: Absent | None = None

    def to_json(self) -> str:
        """Return a machine-readable form."""
        return json.dumps(asdict(self) | {"sound": not self.problems}, indent=2) + "\n"


def validate(
    location: Location,
    deep: bool = False,
    workers: int = 2,
    on_store: Callable[[str], None] = lambda patient_id: None,
) -> Validation:
    """Check every store that the tables name, and the tables themselves.

    Problems are collected, not raised, unreadable tables too. Raises `NotADatasetError`,
    `SchemaVersionError` or `DatasetError` if manifest or patients table cannot be read.
    `on_store` is called with each patient.
    """
    manifest = open_manifest(location)
    table, lost = _everyone(location, manifest)
    rows = RowsByPatient(table)
    arrays, measured = _others(location, manifest, lost)

    def look(patient_id: str) -> tuple[int, list[Problem]]:
        recorded = _Recorded(
            rows.of(patient_id)[0],
            None if arrays is None else arrays.of(patient_id),
            None if measured is None else measured.of(patient_id),
        )
        found = _look(location, manifest, patient_id, recorded, deep)
        _LOG.info("%s: %d problems", patient_id, len(found[1]))
        on_store(patient_id)
        return found

    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(look, rows))
    problems = [*lost, *(p for _, found in outcomes for p in found)]
    if not lost:  # they would repeat this problem
        problems += [*_counts(location, manifest, table), *_content(location, manifest, table)]
    others = {*(measured.patients if measured else ()), *(arrays or ())}
    problems += [
        Problem("measured tables", f"rows of {patient}, who is not in the patients table")
        for patient in sorted(others - set(rows))
    ]
    volumes = sum(n for n, _ in outcomes)
    return Validation(deep, len(rows), volumes, tuple(problems), absent(location, rows))


def _everyone(location: Location, manifest: Manifest) -> tuple[pa.Table, list[Problem]]:
    """Return the patients table, from its one file or those by part, and which is lost.

    Raises `DatasetError` if neither can be read.
    """
    by_part = manifest.model_copy(update={"cohort": None})
    lost, found = [], None
    for file, of in ((manifest.cohort, manifest), ("metadata/patients", by_part)):
        try:
            table = read_table(location, of, "patients") if file else None
        except DatasetError as error:
            lost.append(_lost_table(error))
            failure = error
        else:
            found = table if found is None else found
    if found is None:
        raise failure
    return found, lost


def _others(
    location: Location, manifest: Manifest, lost: list[Problem]
) -> tuple[RowsByPatient | None, AllMeasured | None]:
    """Rows of the other tables by patient, None for those that cannot be read: see `lost`."""
    arrays, measured = None, None
    try:
        arrays = RowsByPatient(read_table(location, manifest, "arrays"))
    except DatasetError as error:
        lost.append(_lost_table(error))
    try:
        measured = read_measured(location, manifest)
    except DatasetError as error:
        lost.append(_lost_table(error))
    return arrays, measured


def _lost_table(error: DatasetError) -> Problem:
    return Problem(error.where or "tables", sentence(error, place=False))


@dataclass(frozen=True)
class _Recorded:
    """The rows of one patient; None for tables that cannot be read."""

    row: Row
    arrays: list[Row] | None
    measured: Measured | None


def _counts(location: Location, manifest: Manifest, patients: pa.Table) -> Iterator[Problem]:
    parts = Counter(patients.column("part").to_pylist())
    for part, count in manifest.patients.items():
        there = parts[part]
        if there != count:
            yield Problem("manifest", f"counts {count} {part} patients; the table has {there}")
    if manifest.cohort is not None:
        by_part = manifest.model_copy(update={"cohort": None})
        if not read_table(location, by_part, "patients").equals(patients):
            yield Problem(manifest.cohort, "differs from the patients tables by part; run finalise")
    if location.can_list:
        named = set(location.children("patients"))
        stores = {n.removesuffix(".zarr") for n in named if n.endswith(".zarr") and n[0] != "."}
        for patient_id in sorted(stores.difference(patients.column("patient_id").to_pylist())):
            yield _without_row(location, patient_id)


def _without_row(location: Location, patient_id: str) -> Problem:
    """Return what is wrong with a store that the patients table does not list."""
    try:
        open_store(location, patient_id)
    except DatasetError as error:  # the reason for which it was left out
        return _damage(location, patient_id, store_path(patient_id), error)
    return Problem(store_path(patient_id), "no row in the patients table; run finalise")


def _content(location: Location, manifest: Manifest, patients: pa.Table) -> Iterator[Problem]:
    """Compare the manifest's content hashes with those of the data: see `dataset.content`."""
    recorded = manifest.content
    if recorded is None:  # written by an early version
        return
    hashes = [name for name in ("patient_id", CONTENT) if name in patients.column_names]
    found = read_content(location, manifest, patients.select(hashes).to_pylist())
    for name, parts in found.tables.items():
        for part, sha256 in parts.items():
            in_manifest = recorded.tables.get(name, {}).get(part)
            if in_manifest != sha256:
                yield Problem(
                    f"{name} table, {part}",
                    f"content {sha256}; the manifest says {in_manifest}; "
                    "run finalise, with --rebuild if that does not help",
                )
    if (found.sha256, found.patients) != (recorded.sha256, recorded.patients):
        yield Problem(
            "manifest", f"content {recorded.sha256}; what is there has {found.sha256}; run finalise"
        )


def _look(
    location: Location, manifest: Manifest, patient_id: str, recorded: _Recorded, deep: bool
) -> tuple[int, list[Problem]]:
    try:
        store = open_store(location, patient_id)
    except DatasetError as error:
        return 0, [_damage(location, patient_id, store_path(patient_id), error)]
    there = object_sizes(location, patient_id)
    damaged = _small_objects(location, store, there, deep) | _shards(store, there)
    problems = [*_attributes(store, manifest), *damaged.values()]
    problems += _tables(store, recorded.row, recorded.arrays)
    problems += [
        Problem(f"{table} table, {patient_id}", finding, measured=patient_id)
        for table, finding in (
            table_findings(store, recorded.measured) if recorded.measured else ()
        )
    ]
    shards, level_shards = list(store.shards()), list(store.level_shards())
    small = list(_small_arrays(location, store, damaged)) if deep else []
    reader = StoreReader(location, store, decoders=1)  # stores are checked in threads
    for array, record, key in shards if deep else []:
        if key not in damaged:
            row = recorded.measured.row(array, record) if recorded.measured else None
            levels = [s for s in level_shards if s.record is record and s.key not in damaged]
            problems += _voxels(reader, array, record, key, row, levels)
    if not damaged and not small:  # the sum would repeat this problem
        problems += _sum(store, there, recorded.row)
    return len(shards), [*problems, *small]


def _damage(location: Location, patient_id: str, where: str, error: DatasetError) -> Problem:
    """Return an error as a problem of `where`, without the remedy, which is printed once."""
    place = error.where != location.path(where)
    return Problem(where, sentence(error, place=place, advice=False), patient_id)


def _attributes(store: StoreMetadata, manifest: Manifest) -> Iterator[Problem]:
    """Check that a store has the settings of the manifest."""
    where = store_path(store.patient_id)
    if store.attributes["precision"] is None:
        yield Problem(where, "no precision in its attributes", store.patient_id)
        return
    kinds = [(n, store.attributes.get(n, False)) for n in _KINDS]
    for name, found in (*kinds, ("levels", store.level_count)):
        recorded = getattr(manifest, name)
        if found != recorded:
            yield Problem(where, f"{name} is {found}; the manifest says {recorded}; run finalise")


def _small_objects(
    location: Location, store: StoreMetadata, there: Mapping[str, int], deep: bool
) -> dict[str, Problem]:
    """Return problems of metadata, labels, axes and flags, by their names.

    They are missing or, if `deep`, differ from what was written.
    """
    place = store_path(store.patient_id)
    objects = store_objects(*read_store(location, store.patient_id))
    found = {}
    for item in (o for o in objects if o.size is None):
        name, finding = f"{place}/{item.name}", None
        if item.name not in there:
            finding = "not there; expected it beside the shards"
        elif deep:
            try:
                finding = item.finding(location.read(name))
            except FileNotFoundError:
                finding = "no file; expected one beside the shards"
            except DatasetError as error:
                found[item.name] = _damage(location, store.patient_id, name, error)
                continue
        if finding is not None:
            found[item.name] = Problem(name, finding, store.patient_id)
    return found


def _shards(store: StoreMetadata, there: Mapping[str, int]) -> dict[str, Problem]:
    """Return problems of shards that are missing or of another size, by their names."""
    found = {}
    expected = [(key, record.stored_bytes) for _, record, key in store.shards()]
    for key, wanted in (*expected, *((s.key, s.bytes) for s in store.level_shards())):
        size, where = there.get(key), f"{store_path(store.patient_id)}/{key}"
        if wanted and size is None:
            finding = f"not there; expected {wanted} bytes"
        elif size is not None and size != wanted:
            finding = f"{size} bytes; expected {wanted}"
        else:
            continue
        found[key] = Problem(where, finding, store.patient_id)
    return found


def _sum(store: StoreMetadata, there: Mapping[str, int], row: Row) -> Iterator[Problem]:
    found, expected = sum(there.values()), row["store_bytes"]
    if found != expected:
        finding = f"objects of {found} bytes in all; expected {expected}"
        yield Problem(store_path(store.patient_id), finding, store.patient_id)


def _tables(store: StoreMetadata, row: Row, arrays: list[Row] | None) -> Iterator[Problem]:
    expected = patient_row(store, row["store_bytes"])
    for column in (c.name for c in PATIENTS.columns if c.name in row or c.name != CONTENT):
        if row.get(column) != expected[column]:
            yield Problem(
                f"patients table, {store.patient_id}",
                f"{column} is {row.get(column)!r}; its store says {expected[column]!r}",
            )
    if arrays is None:
        return
    rows = list(array_rows(store))
    if rows != [{k: a[k] for k in r} for a, r in zip(arrays, rows, strict=False)]:
        yield Problem(f"arrays table, {store.patient_id}", "differs from its store; run finalise")
    elif len(rows) != len(arrays):
        yield Problem(
            f"arrays table, {store.patient_id}",
            f"{len(arrays)} rows; its store has {len(rows)}; run finalise",
        )


def _small_arrays(
    location: Location, store: StoreMetadata, damaged: Iterable[str]
) -> Iterator[Problem]:
    """Yield problems that other readers would have: zarr-python reads labels, axes and flags.

    Voxels and bytes are checked elsewhere, by `StoreReader`. This checks that others read the
    labels that our reader takes from the attributes. Arrays that are `damaged` are left out.
    """
    known = {name.partition("/c/")[0] for name in damaged}
    place = store_path(store.patient_id)
    try:
        root = zarr.open_group(location.zarr_store(place), mode="r")
        members = list(root.members(max_depth=None))
    except (ValueError, KeyError, TypeError, OSError) as error:
        yield Problem(place, f"cannot be opened by zarr ({error})", store.patient_id)
        return
    for path, node in members:
        if not isinstance(node, zarr.Array) or path in store.arrays or path in known:
            continue
        try:
            values = node[...]
        except (ValueError, KeyError, OSError) as error:
            yield Problem(f"{place}/{path}", f"cannot be read ({error})", store.patient_id)
            continue
        group, _, name = path.rpartition("/")
        labels = store.labels(group).get(name)
        if labels is not None and labels != _listed(values):
            finding = f"labels {_listed(values)}; expected {labels}"
            yield Problem(f"{place}/{path}", finding, store.patient_id)


def _listed(values: Any) -> list[Any]:
    return list(values.tolist())


def _voxels(
    reader: StoreReader,
    array: VolumeArray,
    record: SourceRecord,
    key: str,
    row: Row | None,
    levels: Sequence[LevelShard],
) -> Iterator[Problem]:
    patient_id = reader.metadata.patient_id
    where = f"{store_path(patient_id)}/{key}"
    try:
        volume = reader.volume(array, record, verify=True)
        rebuilt = _nifti_sha256(record, volume) if record.restores else record.nifti_sha256
    except DatasetError as error:
        yield _damage(reader.location, patient_id, where, error)
        return
    if rebuilt != record.nifti_sha256:
        finding = f"does not restore {record.path}: its SHA-256 differs"
        yield Problem(where, finding, patient_id)
    elif record.voxels_sha256 not in (None, voxels_sha256(volume, array.dtype)):
        finding = f"voxels whose SHA-256 is not {record.voxels_sha256}, as recorded"
        yield Problem(where, finding, patient_id)
    difference = mask_finding(row, volume)
    if difference:
        yield Problem(where, difference, measured=patient_id)
    for level in levels:
        wrong = level_finding(reader.location, patient_id, level, volume)
        if wrong is not None:
            yield Problem(f"{store_path(patient_id)}/{level.key}", wrong, patient_id)


def _nifti_sha256(record: SourceRecord, volume: Any) -> str:
    sha256 = hashlib.sha256()
    for part in nifti_parts(record, volume):
        sha256.update(part)
    return sha256.hexdigest()
