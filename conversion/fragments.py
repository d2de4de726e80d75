"""One patient's measured rows, kept between conversion and `finalise`, or measured again.

A fragment is tied to its store by the hash of the store's root metadata; one that is lost or
belongs to another store is measured anew from the stored voxels, never guessed at.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lundprobe_zarr.schema.tables import MEASURED, TABLES, store_path
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.metadata import StoreMetadata
from lundprobe_zarr.store.volumes import read_volume
from lundprobe_zarr.vocabulary.files import SourceFile

from .measure import Measurements, Row, bounding_box

_FOLDER = ".conversion"
_STORE = b"store_sha256"


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table so that `path` holds either all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def _path(dataset: Path, patient_id: str, table: str) -> Path:
    return dataset / _FOLDER / table / f"{patient_id}.parquet"


def _store_sha256(dataset: Path, patient_id: str) -> bytes:
    root = dataset / store_path(patient_id) / "zarr.json"
    return hashlib.sha256(root.read_bytes()).hexdigest().encode()


def save_fragments(dataset: Path, patient_id: str, rows: dict[str, list[Row]]) -> None:
    """Keep a patient's measured rows, by table, beside the store they were measured on."""
    for name in MEASURED:
        table = TABLES[name].from_rows(rows[name])
        metadata = {**table.schema.metadata, _STORE: _store_sha256(dataset, patient_id)}
        write_parquet(table.replace_schema_metadata(metadata), _path(dataset, patient_id, name))


def load_fragments(
    dataset: Path, store: StoreMetadata, rebuild: bool = False
) -> dict[str, pa.Table]:
    """A patient's measured tables; measured anew if lost, of another store, or on `rebuild`."""
    kept = None if rebuild else _kept(dataset, store.patient_id)
    if kept is None:
        save_fragments(dataset, store.patient_id, measure_store(Location(dataset), store))
        kept = _kept(dataset, store.patient_id)
    assert kept is not None
    return kept


def _kept(dataset: Path, patient_id: str) -> dict[str, pa.Table] | None:
    expected = _store_sha256(dataset, patient_id)
    tables = {}
    for name in MEASURED:
        try:
            table = pq.read_table(_path(dataset, patient_id, name))
        except (OSError, pa.ArrowException):
            return None
        if (table.schema.metadata or {}).get(_STORE) != expected:
            return None
        if table.schema != TABLES[name].schema:
            return None
        tables[name] = table.cast(TABLES[name].schema)
    return tables


def measure_store(location: Location, store: StoreMetadata) -> dict[str, list[Row]]:
    """Measured rows of a store's voxels, by table; every mask is read back and checked."""
    measurements = Measurements(store.patient_id, str(store.attributes["part"]))
    doses: dict[str, Any] = {}
    for array, record, _ in store.shards():
        grid = array.spec.grid
        if array.spec.variable == "dose":
            doses = {grid: read_volume(location, store, array, record)}
        elif array.spec.is_mask:
            source = SourceFile(array.spec.group, array.spec.variable, record.labels)
            volume = read_volume(location, store, array, record)
            affine, box = _affine(store, grid), bounding_box(volume)
            measurements.add(source, volume, box, affine, doses.get(grid))
    z, y, x = store.groups["mri"]["shape"]
    return measurements.rows((z, y, x), _affine(store, "mri"))


def _affine(store: StoreMetadata, grid: str) -> Any:
    return np.asarray(store.groups[grid]["affine"], dtype=np.float64)
