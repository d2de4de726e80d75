"""Fragments: one patient's measured rows, saved between conversion and `finalise`.

A fragment contains the hash of its store's root metadata. If it is lost or belongs to another
store, the rows are measured again from the stored voxels.

Comparisons take longer, so only `measure` makes them. Their fragments contain the hash of the
patient's contents: they outlast a repair or an upgrade of the store.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lundprobe_zarr.conversion.notes.draft import located
from lundprobe_zarr.conversion.tables.measure import (
    BODY,
    COVERED_TARGETS,
    Body,
    Measurements,
    Row,
)
from lundprobe_zarr.dataset.compared import comparable
from lundprobe_zarr.dataset.content import patient_content, rows_sha256
from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.tables import COMPARED, MEASURED, TABLES
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import FIDUCIAL_PATH, StoreMetadata
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.files import SourceFile

_STORE, _CONTENT = b"store_sha256", b"content_sha256"
_ROWS = b"rows_sha256_2"

#: The arrays of clinical masks.
_CLINICAL = ("mri/clinical/mask", "sct/clinical/mask")


def parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _name(patient_id: str, table: str) -> str:
    return f"{NOTES}/{table}/{patient_id}.parquet"


def save_fragments(
    dataset: Location, patient_id: str, sha256: str, rows: dict[str, list[Row]]
) -> dict[str, pa.Table]:
    """Save a patient's measured rows, by table; `sha256` is the hash of the store's root."""
    tables = {name: TABLES[name].from_rows(rows[name]) for name in MEASURED}
    _save(dataset, patient_id, tables, {_STORE: sha256.encode()})
    return tables


def _save(
    dataset: Location,
    patient_id: str,
    tables: Mapping[str, pa.Table],
    made_from: dict[bytes, bytes],
) -> None:
    for name, table in tables.items():
        metadata = {**table.schema.metadata, **made_from, _ROWS: _hash(table)}
        kept = parquet(table.replace_schema_metadata(metadata))
        dataset.write(_name(patient_id, name), kept)


def save_compared(dataset: Location, store: StoreMetadata, rows: Mapping[str, list[Row]]) -> None:
    """Save a patient's rows of the tables in `COMPARED`."""
    tables = {name: TABLES[name].from_rows(rows[name]) for name in COMPARED}
    _save(dataset, store.patient_id, tables, {_CONTENT: patient_content(store).encode()})


def load_compared(
    dataset: Location, stores: Sequence[StoreMetadata]
) -> list[dict[str, pa.Table] | None]:
    """Return each store's rows of the tables in `COMPARED`; None if they must be measured.

    A patient without network and observers, or whose grid is not at right angles, has no rows and
    needs no fragment.
    """
    wanted = [s for s in stores if comparable(s)]
    names = [_name(s.patient_id, name) for s in wanted for name in COMPARED]
    files = iter(dataset.read_each(names))
    found = {s.patient_id: _kept(s, list(islice(files, len(COMPARED))), COMPARED) for s in wanted}
    nothing = {name: TABLES[name].schema.empty_table() for name in COMPARED}
    return [found.get(s.patient_id, nothing) for s in stores]


def drop_fragments(dataset: Location, patient_id: str) -> None:
    """Delete a patient's measured rows, so that they are measured again."""
    for name in MEASURED:
        dataset.delete(_name(patient_id, name))


def load_fragments(
    dataset: Location | Path, stores: Sequence[StoreMetadata], rebuild: bool = False
) -> list[dict[str, pa.Table]]:
    """Return each store's measured tables; measure again if lost, outdated, or on `rebuild`."""
    dataset = located(dataset)
    names = [_name(s.patient_id, name) for s in stores for name in MEASURED]
    files = iter([None] * len(names) if rebuild else dataset.read_each(names))
    return [_kept(s, list(islice(files, len(MEASURED)))) or _measured(dataset, s) for s in stores]


def _measured(dataset: Location, store: StoreMetadata) -> dict[str, pa.Table]:
    rows = measure_store(dataset, store)
    return save_fragments(dataset, store.patient_id, store.sha256, rows)


def _kept(
    store: StoreMetadata, files: Sequence[bytes | None], names: Sequence[str] = MEASURED
) -> dict[str, pa.Table] | None:
    """Return the tables in a store's saved `files`; None if one is damaged, outdated or missing."""
    tables = {}
    for name, data in zip(names, files, strict=True):
        if data is None:
            return None
        try:
            table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            if not _belongs(table, name, store):
                return None
        except (OSError, ValueError, pa.ArrowException):  # a damaged file
            return None
        tables[name] = table.cast(TABLES[name].schema)
    return tables


def _belongs(table: pa.Table, name: str, store: StoreMetadata) -> bool:
    """Return whether a table's rows were measured from this store and are unchanged."""
    metadata = table.schema.metadata or {}
    if name in COMPARED:
        same = metadata.get(_CONTENT) == patient_content(store).encode()
    else:
        same = metadata.get(_STORE) == store.sha256.encode()
    return bool(
        same
        and table.schema == TABLES[name].schema
        and metadata.get(_ROWS) in (None, _hash(table))  # None: written by an early version
    )


def _hash(table: pa.Table) -> bytes:
    return rows_sha256(table).encode()


def measure_store(location: Location, store: StoreMetadata) -> dict[str, list[Row]]:
    """Measure a store's voxels and return the rows by table; every mask is read and checked."""
    measurements = Measurements(
        store.patient_id, str(store.attributes["part"]), store.attributes["multi_component_files"]
    )
    doses: dict[str, Any] = {}
    planned = store.grid("dose")
    reader = StoreReader(location, store, decoders=1)  # patients are measured in parallel
    if store.fiducial_record is not None:
        shape = (store.n_fiducials, 3)
        measurements.fiducials = reader.small_array(FIDUCIAL_PATH, shape, np.dtype(np.float64))
    bodies = cache(partial(_body, reader))
    for array, record, _ in store.shards():
        grid = array.spec.grid
        if array.spec.variable == "dose":
            doses = {grid: reader.volume(array, record)}
        elif array.spec.is_mask:
            source = SourceFile(array.spec.group, array.spec.variable, record.labels)
            volume = reader.volume(array, record)
            affine, box = _affine(store, grid), bounding_box(volume)
            measurements.add(source, volume, box, affine, doses.get(grid), planned)
        elif array.spec.variable == "image":
            source = SourceFile(array.spec.group, array.spec.variable, record.labels)
            measurements.add_image(source, reader.volume(array, record), bodies(grid))
    z, y, x = store.groups["mri"]["shape"]
    return measurements.rows((z, y, x), _affine(store, "mri"))


def _body(reader: StoreReader, grid: str) -> Body:
    """Read the clinical BODY of a grid, if the patient has one."""
    array = reader.metadata.arrays.get(f"{grid}/clinical/mask")
    records = [r for r in (array.sources if array else ()) if r.labels["structure"] == BODY]
    return Body.of(reader.volume(array, records[0]) if array and records else None, grid)


def coverage_of_store(location: Location, store: StoreMetadata) -> list[str]:
    """List the findings about targets outside the planning dose grid; reads only their masks.

    Raises `DamagedStoreError` if a byte is missing or wrong.
    """
    measurements = Measurements(store.patient_id, str(store.attributes["part"]))
    planned, reader = store.grid("dose"), StoreReader(location, store)
    for array, record, _ in store.shards():
        structure = record.labels.get("structure")
        if array.spec.path in _CLINICAL and structure in COVERED_TARGETS:
            source = SourceFile(array.spec.group, array.spec.variable, record.labels)
            volume = reader.volume(array, record)
            box, affine = bounding_box(volume), _affine(store, array.spec.grid)
            measurements.add(source, volume, box, affine, None, planned)
    return measurements.coverage_findings()


def _affine(store: StoreMetadata, grid: str) -> Any:
    return np.asarray(store.groups[grid]["affine"], dtype=np.float64)
