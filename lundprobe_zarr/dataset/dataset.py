"""The class `Dataset`: an opened dataset with its manifest, tables and stores."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.dataset.arrow import text_array, to_arrow, to_numpy
from lundprobe_zarr.dataset.identity import DatasetIdentity
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import Command, DatasetError
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import PATIENTS, STRUCTURES_TABLE, VIEWS
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.markup import summary_html

_LOG = logging.getLogger("lundprobe_zarr.dataset")

#: Row numbers in the patients table, ascending. They define a cohort.
Rows = npt.NDArray[np.int64]

#: Columns that identify a segmentation, except for folds and observers.
SEGMENTATION_KEYS = ("patient_id", "grid", "source", "structure")

#: Columns that identify a patients table: its patients and the sizes of their sources.
_IDENTIFYING = ("patient_id", "part", "protocol", "store", "source_bytes")


class Dataset:
    """An opened dataset: its location, manifest, tables and patients' stores.

    Its cohorts and patients share it. Each table is read once, on first use. A pickle contains the
    patients table only.

    Attributes
    ----------
    location : Location
        Where the dataset is.
    manifest : Manifest
        The contents of `lundprobe.json`.
    """

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self.location = location
        self.manifest = manifest
        self._whole: dict[str, pa.Table] = {}
        self._parts: dict[str, pa.Table] = {}
        self._forget_rows()

    @classmethod
    def open(cls, location: Location) -> Dataset:
        """Open the dataset at a location: read its manifest and patients table.

        Parameters
        ----------
        location : Location
            Where the dataset is.

        Raises
        ------
        NotADatasetError
            If there is no dataset.
        SchemaVersionError
            If its schema is newer than this version.
        DatasetError
            If the manifest or the patients table is damaged.
        """
        dataset = cls(location, open_manifest(location))
        dataset.table(PATIENTS.name)
        _LOG.info("opened %r", dataset)
        return dataset

    def __repr__(self) -> str:
        """Return name, precision, number of patients and location."""
        name, precision = self.manifest.name, self.manifest.precision
        return f"<Dataset: {name}, {precision}, {len(self.ids)} patients, at {self.location.url}>"

    def _repr_html_(self) -> str:
        """Return what the manifest says, for notebooks. No table is read for it."""
        manifest = self.manifest
        parts = ", ".join(f"{n} {part}" for part, n in manifest.patients.items())
        facts = {
            "patients": f"{len(self.ids)} ({parts})",
            "precision": str(manifest.precision),
            "tables": ", ".join(manifest.tables),
            "content": manifest.content.sha256 if manifest.content else "not known",
            "written": f"{manifest.created} by {manifest.converter}",
            "schema": str(manifest.schema_version),
            "cite": manifest.citation,
            "location": self.location.url,
        }
        return summary_html(f"Dataset: {manifest.name}", facts)

    def store(self, patient_id: str) -> StoreMetadata:
        """Read the metadata of a patient's store, in one request.

        Raises `DamagedStoreError` if it is missing or damaged.
        """
        return open_store(self.location, patient_id)

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets the small table and reads large ones only if it needs them.
        small = {n: t for n, t in self._whole.items() if n == PATIENTS.name}
        dropped: dict[str, Any] = {"_parts": {}, "_row_of_segmentation": {}}
        return self.__dict__ | {"_whole": small, "_patient_of_row": None} | dropped

    def _forget_rows(self) -> None:
        """Drop the row numbers found in a table that has been read again."""
        self._row_of_segmentation: dict[tuple[str, str, str], Rows] = {}
        self._patient_of_row: npt.NDArray[np.int32] | None = None

    def table(self, name: str) -> pa.Table:
        """Return a whole table. It is read once.

        Raises `DatasetError` if it cannot be read, `UnknownLabelError` if it does not exist.
        """
        if name not in self._whole:
            self._whole[name] = read_table(self.location, self.manifest, name)
            self._forget_rows()
        return self._whole[name]

    def has_read(self, name: str) -> bool:
        """Return whether a whole table or view is in memory."""
        return name in self._whole

    def view(self, name: str) -> pa.Table:
        """Return a view of a whole table: the rows with the view's values. It is made once.

        Raises like `table`.
        """
        if name not in self._whole:
            found = self.table(VIEWS[name].table)
            for column, value in VIEWS[name].values.items():
                found = found.filter(pc.equal(found.column(column), value))
            self._whole[name] = found
        return self._whole[name]

    def columns(self, name: str, columns: Collection[str]) -> pa.Table:
        """Return some columns of a table. Only those are read, each once.

        A remote table is fetched and kept whole. The columns that identify a segmentation may be
        Arrow dictionaries. Raises like `table`, and `DatasetError` if a column is absent.
        """
        if not self.location.is_local:
            self.table(name)
        table = self._whole.get(name, self._parts.get(name))
        known = set() if table is None else set(table.column_names)
        if table is None or not (name in self._whole or known.issuperset(columns)):
            wanted = sorted(known.union(columns))
            encoded = SEGMENTATION_KEYS if name == STRUCTURES_TABLE.name else ()
            table = self._parts[name] = read_table(
                self.location, self.manifest, name, wanted, encoded
            )
            self._forget_rows()
        absent = [c for c in columns if c not in table.column_names]
        if absent:
            raise DatasetError(
                f"the table {name} has no column {', '.join(absent)}",
                where=self.location.url,
                expected="every column of the present schema",
                remedy="rebuild it with {command}, which also upgrades one of an older schema",
                command=Command("finalise", ("--rebuild",)),
            )
        return table.select(list(columns))

    @cached_property
    def ids(self) -> list[str]:
        """Ids of all patients, in the order of the patients table."""
        ids: list[str] = self.columns("patients", ["patient_id"]).column(0).to_pylist()
        return ids

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number of each patient in the patients table, by id."""
        return {patient_id: row for row, patient_id in enumerate(self.ids)}

    def segmentations(self, fields: Collection[str]) -> pa.Table:
        """Return the given fields of the structures table with the columns that identify rows."""
        return self.columns("structures", [*SEGMENTATION_KEYS, *sorted(fields)])

    def segmentation(
        self, grid: str, source: str, structure: str, fields: Sequence[str]
    ) -> list[Any]:
        """Return one segmentation's values: presence (bool), then each field, one per patient.

        The fields are null for a patient who lacks the segmentation.
        """
        table = self.segmentations(fields)
        key = (grid, source, structure)
        rows = self._row_of_segmentation.get(key)
        if rows is None:  # another thread may drop what is kept, at any time
            rows = self._row_of_segmentation[key] = self._find(table, key)
        taken = to_arrow(rows, rows >= 0)
        return [taken.is_valid(), *(table.column(f).take(taken) for f in fields)]

    def _find(self, table: pa.Table, key: tuple[str, str, str]) -> Rows:
        """Return each patient's row of the structures table; -1 if absent."""
        wanted = np.ones(table.num_rows, bool)
        for column, value in zip(SEGMENTATION_KEYS[1:], key, strict=True):
            wanted &= _indices(table.column(column), text_array(value)) == 0
        patients = self._patient_of_row
        if patients is None:
            everyone = self.columns("patients", ["patient_id"]).column(0).combine_chunks()
            patients = self._patient_of_row = _indices(table.column("patient_id"), everyone)
        rows = np.flatnonzero(wanted)
        patient = patients[rows]
        found = np.full(len(self.ids), -1, np.int64)
        found[patient[patient >= 0]] = rows[patient >= 0]
        return found

    def patient_rows(self, name: str, patient_id: str) -> pa.Table:
        """Return one patient's rows of a table."""
        table = self.table(name)
        return table.filter(pc.equal(table.column("patient_id"), patient_id))

    def patient(self, patient_id: str) -> dict[str, Any]:
        """Return a patient's row of the patients table: column -> value."""
        row: dict[str, Any] = (
            self.table("patients").slice(self.row_of[patient_id], 1).to_pylist()[0]
        )
        return row

    def is_same(self, other: Dataset) -> bool:
        """Return whether both are the same dataset; copies count as the same."""
        return self is other or not self.identity.differences(other.identity)

    @cached_property
    def identity(self) -> DatasetIdentity:
        """The identity of this dataset, from the manifest and the patients table."""
        manifest = self.manifest
        return DatasetIdentity(
            name=manifest.name,
            doi=manifest.doi,
            schema_version=manifest.schema_version,
            precision=str(manifest.precision),
            patients=len(self.ids),
            digest=self._digest(),
            created=manifest.created,
        )

    def _digest(self) -> str:
        columns = self.columns("patients", _IDENTIFYING).to_pydict().values()
        lines = sorted("\t".join(map(str, row)) for row in zip(*columns, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _indices(column: pa.ChunkedArray, among: pa.Array) -> npt.NDArray[np.int32]:
    """Return the index in `among` of every text of `column`; -1 if absent.

    Dictionaries are used to look up each distinct text once.
    """
    chunks = [c if pa.types.is_dictionary(c.type) else c.dictionary_encode() for c in column.chunks]
    texts = pa.chunked_array([c.dictionary for c in chunks], pa.string())
    found = to_numpy(pc.index_in(texts, value_set=among).combine_chunks(), null=-1)
    indices, start = [np.empty(0, np.int32)], 0
    for chunk in chunks:
        stop = start + len(chunk.dictionary)
        looked_up = np.append(found[start:stop], np.int32(-1))  # the last for nulls
        indices.append(looked_up[to_numpy(chunk.indices, null=stop - start)])
        start = stop
    return np.concatenate(indices)
