"""Is a dataset whole and sound? Quickly by its objects' sizes, or deeply by every byte.

The quick look reads metadata and tables and lists objects. The deep one decodes every chunk
(checksums), hashes every shard, compares every mask with its row, and rebuilds every NIfTI file
that was stored exactly, to compare its hash with the original's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import zarr

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import CONTENT, PATIENTS, store_path
from lundprobe_zarr.store.content import read_content, voxels_sha256
from lundprobe_zarr.store.dataset import open_manifest, open_store, read_store, read_table
from lundprobe_zarr.store.describe import array_rows, patient_row
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.metadata import StoreMetadata, VolumeArray
from lundprobe_zarr.store.objects import object_sizes, store_objects
from lundprobe_zarr.store.validate_measured import (
    Measured,
    mask_finding,
    read_measured,
    table_findings,
)
from lundprobe_zarr.store.volumes import nifti_parts, read_volume


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what was found and expected, who is concerned, what helps.

    `patient_id` is None where it is no single patient. `remedy` is `convert`: the store is damaged,
    convert the patient again; `measure`: the store is sound, its measured rows are not; `finalise`:
    write tables and manifest anew.
    """

    where: str
    finding: str
    remedy: str = "finalise"
    patient_id: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.finding}"


@dataclass(frozen=True)
class Validation:
    """Outcome: how deep, how many stores and volumes were looked at, and what is wrong."""

    deep: bool
    stores: int
    volumes: int
    problems: tuple[Problem, ...]

    def to_json(self) -> str:
        """Machine-readable form."""
        return json.dumps(asdict(self) | {"sound": not self.problems}, indent=2) + "\n"


def validate(
    location: Location,
    deep: bool = False,
    workers: int = 2,
    on_store: Callable[[str], None] = lambda patient_id: None,
) -> Validation:
    """Look at every store that the tables name, and at the tables themselves.

    Problems are collected, not raised; raises `NotADatasetError`, `SchemaVersionError` or
    `DatasetError` if manifest or tables cannot be read at all. `on_store` hears of each patient.
    """
    manifest = open_manifest(location)
    rows = {r["patient_id"]: r for r in read_table(location, manifest, "patients").to_pylist()}
    arrays = _by_patient(read_table(location, manifest, "arrays").to_pylist())
    measured = read_measured(location, manifest)

    def look(patient_id: str) -> tuple[int, list[Problem]]:
        said = _Said(
            rows[patient_id], arrays.get(patient_id, []), measured.get(patient_id, Measured())
        )
        found = _look(location, patient_id, said, deep)
        on_store(patient_id)
        return found

    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(look, rows))
    problems = [*_counts(location, manifest, rows), *(p for _, found in outcomes for p in found)]
    problems += _content(location, manifest, rows)
    problems += [
        Problem("measured tables", f"rows of {patient}, who is not in the patients table")
        for patient in sorted({*measured, *arrays} - set(rows))
    ]
    return Validation(deep, len(rows), sum(n for n, _ in outcomes), tuple(problems))


@dataclass(frozen=True)
class _Said:
    """What the tables say of one patient."""

    row: dict[str, Any]
    arrays: list[dict[str, Any]]
    measured: Measured


def _by_patient(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["patient_id"], []).append(row)
    return grouped


def _counts(
    location: Location, manifest: Manifest, rows: dict[str, dict[str, Any]]
) -> Iterator[Problem]:
    for part, count in manifest.patients.items():
        there = sum(r["part"] == part for r in rows.values())
        if there != count:
            yield Problem("manifest", f"counts {count} {part} patients; the table has {there}")
    if manifest.cohort is not None:
        by_part = manifest.model_copy(update={"cohort": None})
        if read_table(location, by_part, "patients").to_pylist() != list(rows.values()):
            yield Problem(manifest.cohort, "differs from the patients tables by part; run finalise")
    if location.is_local:
        stores = {k.split("/")[0].removesuffix(".zarr") for k in location.find("patients")}
        for patient in sorted(s for s in stores - set(rows) if not s.startswith(".")):
            yield Problem(store_path(patient), "no row in the patients table; run finalise")


def _content(
    location: Location, manifest: Manifest, rows: dict[str, dict[str, Any]]
) -> Iterator[Problem]:
    """Whether the manifest's hashes are those of what is there: see `store.content`."""
    said = manifest.content
    if said is None:  # written by an early version
        return
    found = read_content(location, manifest, rows.values())
    for name, parts in found.tables.items():
        for part, sha256 in parts.items():
            if said.tables.get(name, {}).get(part) != sha256:
                yield Problem(
                    f"{name} table, {part}",
                    f"content {sha256}; the manifest says {said.tables.get(name, {}).get(part)}; "
                    "run finalise, with --rebuild if that does not help",
                )
    if (found.sha256, found.patients) != (said.sha256, said.patients):
        yield Problem(
            "manifest", f"content {said.sha256}; what is there has {found.sha256}; run finalise"
        )


def _look(
    location: Location, patient_id: str, said: _Said, deep: bool
) -> tuple[int, list[Problem]]:
    try:
        store = open_store(location, patient_id)
    except DatasetError as error:
        return 0, [_damage(store_path(patient_id), str(error), patient_id)]
    problems = [*_objects(location, store, said.row), *_tables(store, said.row, said.arrays)]
    problems += [
        Problem(f"{table} table, {patient_id}", finding, "measure")
        for table, finding in table_findings(store, said.measured)
    ]
    shards = list(store.shards())
    if deep:
        problems += _small_arrays(location, store)
        for array, record, key in shards:
            row = said.measured.row(array, record)
            problems += _voxels(location, store, array, record, key, row)
    return len(shards), [replace(p, patient_id=patient_id) for p in problems]


def _damage(where: str, finding: str, patient_id: str | None = None) -> Problem:
    return Problem(where, finding, "convert", patient_id)


def _objects(location: Location, store: StoreMetadata, row: dict[str, Any]) -> Iterator[Problem]:
    place = store_path(store.patient_id)
    if store.attributes["precision"] is None:
        yield _damage(place, "no precision in its attributes")
    there = object_sizes(location, store.patient_id)
    for name in sorted(_small_objects(location, store.patient_id).difference(there)):
        yield _damage(f"{place}/{name}", "not there; expected it beside the shards")
    for _, record, key in store.shards():
        size = there.get(key)
        if record.stored_bytes and size is None:
            yield _damage(f"{place}/{key}", f"not there; expected {record.stored_bytes} bytes")
        elif size is not None and size != record.stored_bytes:
            yield _damage(f"{place}/{key}", f"{size} bytes; expected {record.stored_bytes}")
    if sum(there.values()) != row["store_bytes"]:
        found = sum(there.values())
        yield _damage(place, f"objects of {found} bytes in all; expected {row['store_bytes']}")


def _small_objects(location: Location, patient_id: str) -> set[str]:
    """Names of a store's metadata, labels, axes and flags, as its root says."""
    return {o.name for o in store_objects(*read_store(location, patient_id)) if o.size is None}


def _tables(
    store: StoreMetadata, row: dict[str, Any], arrays: list[dict[str, Any]]
) -> Iterator[Problem]:
    expected = patient_row(store, row["store_bytes"])
    for column in (c.name for c in PATIENTS.columns if c.name in row or c.name != CONTENT):
        if row.get(column) != expected[column]:
            yield Problem(
                f"patients table, {store.patient_id}",
                f"{column} is {row.get(column)!r}; its store says {expected[column]!r}",
            )
    rows = list(array_rows(store))
    if rows != [{k: a[k] for k in r} for a, r in zip(arrays, rows, strict=False)]:
        yield Problem(f"arrays table, {store.patient_id}", "differs from its store; run finalise")
    elif len(rows) != len(arrays):
        yield Problem(
            f"arrays table, {store.patient_id}",
            f"{len(arrays)} rows; its store has {len(rows)}; run finalise",
        )


def _small_arrays(location: Location, store: StoreMetadata) -> Iterator[Problem]:
    """Labels, axes, flags: read through zarr, which checks their checksums."""
    place = store_path(store.patient_id)
    root = zarr.open_group(location.zarr_store(place), mode="r")
    for path, node in root.members(max_depth=None):
        if not isinstance(node, zarr.Array) or path in store.arrays:
            continue
        try:
            values = node[...]
        except (ValueError, KeyError, OSError) as error:
            yield _damage(f"{place}/{path}", f"cannot be read ({error})")
            continue
        group, _, name = path.rpartition("/")
        labels = store.labels(group).get(name)
        if labels is not None and labels != _listed(values):
            yield _damage(f"{place}/{path}", f"labels {_listed(values)}; expected {labels}")


def _listed(values: Any) -> list[Any]:
    return list(values.tolist())


def _voxels(
    location: Location,
    store: StoreMetadata,
    array: VolumeArray,
    record: SourceRecord,
    key: str,
    row: dict[str, Any] | None,
) -> Iterator[Problem]:
    where = f"{store_path(store.patient_id)}/{key}"
    try:
        volume = read_volume(location, store, array, record)
    except DatasetError as error:
        yield _damage(where, str(error))
        return
    if record.stored_bytes and _shard_sha256(location, where) != record.stored_sha256:
        yield _damage(where, f"SHA-256 differs from {record.stored_sha256}, recorded when written")
    if record.restores and _nifti_sha256(record, volume) != record.nifti_sha256:
        yield _damage(where, f"does not give back {record.path}: its SHA-256 differs")
    if record.voxels_sha256 not in (None, voxels_sha256(volume, array.dtype)):
        yield _damage(where, f"voxels whose SHA-256 is not {record.voxels_sha256}, as recorded")
    difference = mask_finding(row, volume)
    if difference:
        yield Problem(where, difference, "measure")


def _shard_sha256(location: Location, where: str) -> str:
    return hashlib.sha256(location.read(where)).hexdigest()


def _nifti_sha256(record: SourceRecord, volume: Any) -> str:
    sha256 = hashlib.sha256()
    for part in nifti_parts(record, volume):
        sha256.update(part)
    return sha256.hexdigest()
