"""Rows of comparisons from a dataset's tables, used if the converter's notes are lost.

A copy of a dataset has no notes. Its tables can replace them if their SHA-256 is that of the
manifest: rows of a patient whose contents have not changed since are taken from the tables.
"""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.dataset.content import patient_content
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.schema.tables import COMPARED, CONTENT, PATIENTS, TABLES
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata


class EarlierRows:
    """The rows of a dataset's tables in `COMPARED`; they are read on first use."""

    def __init__(self, dataset: Location) -> None:
        self._dataset = dataset

    def of(self, store: StoreMetadata) -> dict[str, pa.Table] | None:
        """Return a patient's rows; None if there are none, or the patient's contents changed."""
        content = self._content.get(store.patient_id)
        if content is None or content != patient_content(store):
            return None
        return {
            name: table.filter(pc.equal(table.column("patient_id"), store.patient_id))
            for name, table in self._tables.items()
        }

    @cached_property
    def _tables(self) -> dict[str, pa.Table]:
        return self._read[0]

    @cached_property
    def _content(self) -> dict[str, str]:
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, pa.Table], dict[str, str]]:
        try:
            manifest = open_manifest(self._dataset)
            if not manifest.table_sha256 or not manifest.tables.keys() >= set(COMPARED):
                return {}, {}
            tables = {name: read_table(self._dataset, manifest, name) for name in COMPARED}
            patients = read_table(self._dataset, manifest, PATIENTS.name, ["patient_id", CONTENT])
        except DatasetError:  # missing or damaged: nothing to take from it
            return {}, {}
        if any(t.schema != TABLES[name].schema for name, t in tables.items()):
            return {}, {}
        ids, content = (patients.column(c).to_pylist() for c in ("patient_id", CONTENT))
        return tables, dict(zip(ids, content, strict=True))
