"""Write a dataset's tables while its stores are read, in bounded memory.

The tables of each part grow in files of a temporary folder. They are moved to the dataset when all
of them are complete.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lundprobe_zarr.conversion.tables.earlier import EarlierRows
from lundprobe_zarr.conversion.tables.fragments import load_compared, load_fragments, parquet
from lundprobe_zarr.dataset.content import file_content
from lundprobe_zarr.dataset.derive import array_rows, patient_row
from lundprobe_zarr.schema.tables import (
    COHORT_FILE,
    COMPARED,
    CONTENT,
    MEASURED,
    PATIENTS,
    TABLES,
    store_path,
    table_file,
)
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.names import PARTS

#: Suffix of a store's name, after the patient's id.
SUFFIX = ".zarr"
#: Patients per row group: all of LUND-PROBE fit into one; for more, it bounds the memory.
_ROW_GROUP = 512
#: Stores listed in parallel.
_REQUESTS = 16


class TableFiles:
    """The tables of all stores given to `add`, with files, rows, bytes, content and SHA-256.

    Memory holds one row group, one column, and the patients table. Comparisons are left out while
    there are `unmeasured` patients.
    """

    def __init__(self, dataset: Location, rebuild: bool, folder: Path) -> None:
        self._dataset = dataset
        self._rebuild = rebuild
        self._folder = folder
        self._writers: dict[tuple[str, str], pq.ParquetWriter] = {}
        self._pending: dict[str, list[dict[str, pa.Table]]] = defaultdict(list)
        self._patients: dict[str, list[pa.Table]] = defaultdict(list)
        self._sizes_of_all: Mapping[str, int] | None = None
        self._earlier = EarlierRows(dataset)
        self.unmeasured: list[str] = []
        self.files: dict[str, dict[str, list[str]]] = {}
        self.sizes: dict[str, dict[str, tuple[int, int]]] = {}
        self.content: dict[str, dict[str, str]] = {}
        self.sha256: dict[str, str] = {}

    def add(self, stores: Sequence[StoreMetadata]) -> None:
        """Append the rows of some stores, in their order."""
        bytes_of = self._bytes(stores)
        for part in PARTS:
            chosen = [s for s in stores if s.attributes["part"] == part]
            if chosen:
                self._append(part, self._rows(chosen, bytes_of))

    def _rows(
        self, stores: Sequence[StoreMetadata], bytes_of: Mapping[str, int]
    ) -> dict[str, pa.Table]:
        measured = load_fragments(self._dataset, stores, self._rebuild)
        compared = self._compared(stores)
        patients = [patient_row(s, bytes_of[s.patient_id]) for s in stores]
        return {
            PATIENTS.name: PATIENTS.from_rows(patients),
            "arrays": TABLES["arrays"].from_rows(row for s in stores for row in array_rows(s)),
            **{name: pa.concat_tables([f[name] for f in measured]) for name in MEASURED},
            **{name: pa.concat_tables([f[name] for f in compared]) for name in COMPARED},
        }

    def _compared(self, stores: Sequence[StoreMetadata]) -> list[dict[str, pa.Table]]:
        """Return the stores' comparisons; those that lack them are `unmeasured` and have none."""
        nothing = {name: TABLES[name].schema.empty_table() for name in COMPARED}
        found = []
        for store, rows in zip(stores, load_compared(self._dataset, stores), strict=True):
            known = rows or self._earlier.of(store)
            if known is None:
                self.unmeasured.append(store.patient_id)
            found.append(known or nothing)
        return found

    def _append(self, part: str, rows: dict[str, pa.Table]) -> None:
        self._patients[part].append(rows[PATIENTS.name])
        self._pending[part].append(rows)
        if sum(p[PATIENTS.name].num_rows for p in self._pending[part]) >= _ROW_GROUP:
            self._write(part)

    def _write(self, part: str) -> None:
        """Write a part's pending rows as a row group of each table."""
        pending = self._pending.pop(part, [])
        for name in TABLES if pending else ():
            if name in COMPARED and not sum(p[name].num_rows for p in pending):
                continue
            if (name, part) not in self._writers:
                self._writers[name, part] = pq.ParquetWriter(
                    self._file(name, part), TABLES[name].schema, compression="zstd"
                )
            self._writers[name, part].write_table(pa.concat_tables(p[name] for p in pending))

    def _file(self, name: str, part: str) -> Path:
        return self._folder / f"{name}-{part}.parquet"

    def complete(self) -> dict[str, Path | bytes]:
        """Return all objects of the tables, as files or bytes. There must be at least one store."""
        for part in PARTS:
            self._write(part)
        names = [name for name in TABLES if name not in COMPARED or not self.unmeasured]
        self.files = {name: {} for name in names}
        self.sizes = {name: {} for name in names}
        self.content = {name: {} for name in names}
        objects: dict[str, Path | bytes] = {}
        for (name, part), writer in self._writers.items():
            writer.close()
            if name not in names:
                continue
            self._note(name, part)
            objects[table_file(name, part)] = self._file(name, part)
        of_parts = [pa.concat_tables(self._patients[p]) for p in PARTS if p in self._patients]
        objects[COHORT_FILE] = parquet(pa.concat_tables(of_parts))
        self.sha256 = {name: _sha256(contents) for name, contents in objects.items()}
        return objects

    def _note(self, name: str, part: str) -> None:
        written = self._file(name, part)
        with pq.ParquetFile(written) as opened:
            self.files[name][part] = [table_file(name, part)]
            self.sizes[name][part] = opened.metadata.num_rows, written.stat().st_size
            self.content[name][part] = file_content(name, [opened])

    @property
    def content_of_patients(self) -> dict[str, str]:
        """Content hash of every patient."""
        found: dict[str, str] = {}
        for table in (t for some in self._patients.values() for t in some):
            ids, hashes = (table[c].to_pylist() for c in ("patient_id", CONTENT))
            found |= zip(ids, hashes, strict=True)
        return found

    def _bytes(self, stores: Sequence[StoreMetadata]) -> Mapping[str, int]:
        """Return the size of each patient's store; a bucket is listed only once."""
        if not self._dataset.is_local:
            if self._sizes_of_all is None:
                self._sizes_of_all = _sizes_of_all(self._dataset)
            return self._sizes_of_all
        ids = [s.patient_id for s in stores]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            found = pool.map(lambda i: self._dataset.find(store_path(i)), ids)
            return {i: sum(sizes.values()) for i, sizes in zip(ids, found, strict=True)}


def _sha256(contents: Path | bytes) -> str:
    if isinstance(contents, bytes):
        return hashlib.sha256(contents).hexdigest()
    with contents.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sizes_of_all(dataset: Location) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for name, size in dataset.find("patients").items():
        total[name.partition("/")[0].removesuffix(SUFFIX)] += size
    return total


@contextmanager
def table_files(dataset: Location, rebuild: bool) -> Iterator[TableFiles]:
    """Make tables in a temporary folder, which is removed at the end.

    On `rebuild`, rows are measured again from the voxels.
    """
    with tempfile.TemporaryDirectory(prefix="lundprobe-zarr-tables-") as folder:
        yield TableFiles(dataset, rebuild, Path(folder))
