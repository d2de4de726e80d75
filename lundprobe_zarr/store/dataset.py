"""Open a converted dataset: its manifest, its tables, its stores' metadata."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from lundprobe_zarr.errors import (
    DamagedStoreError,
    DatasetError,
    NotADatasetError,
    UnknownLabelError,
)
from lundprobe_zarr.schema.manifest import MANIFEST_NAME, Manifest, parse_manifest
from lundprobe_zarr.schema.tables import PATIENTS, TABLES, store_path
from lundprobe_zarr.store.location import Location, Range, read_object
from lundprobe_zarr.store.metadata import StoreMetadata, parse_store_of
from lundprobe_zarr.store.remedy import remedy
from lundprobe_zarr.store.sound import read_sound

#: Files of a table read at a time.
_THREADS = 8
#: Bytes at the end of a table's file that hold its footer, as a rule.
_FOOTER = 1 << 16


def open_manifest(location: Location) -> Manifest:
    """The dataset's manifest; one request. Raises as `read_manifest` does."""
    return read_manifest(location)[0]


def read_manifest(location: Location) -> tuple[Manifest, bytes]:
    """The dataset's manifest and its text; one request.

    Raises `NotADatasetError` if there is none, `DatasetError` or `SchemaVersionError` if it
    cannot be used.
    """
    where = location.path(MANIFEST_NAME)
    try:
        return read_sound(
            location,
            MANIFEST_NAME,
            lambda: location.read(MANIFEST_NAME),
            lambda text: (parse_manifest(text, where), text),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        if location.url.endswith(f"/{MANIFEST_NAME}"):
            raise NotADatasetError(
                f"{location.url}: a manifest; expected the root of a converted dataset, which is "
                "the folder that holds it; leave out the last part"
            ) from error
        raise NotADatasetError(
            f"{where}: not there; expected the root of a converted dataset; convert with "
            "`lundprobe-zarr convert SRC DEST`, and after `--part` runs `lundprobe-zarr finalise`"
        ) from error


def read_table(
    location: Location,
    manifest: Manifest,
    name: str,
    columns: Sequence[str] | None = None,
    encoded: Sequence[str] = (),
    without: Sequence[str] = (),
) -> pa.Table:
    """A table of the dataset, all parts one after another; all of it, or just some columns.

    `columns` are those wanted; if not given, all that are there but those `without`.

    Columns in `encoded` come as Arrow dictionaries, one a chunk, which for texts that repeat takes
    a fraction of the time. Each file is read whole and compared with its hash in the manifest.
    Raises `UnknownLabelError` for a table there is none of, `DatasetError` for a damaged one.
    """
    if name not in manifest.tables:
        raise UnknownLabelError(
            f"no table {name!r} in {location.url}; it has {', '.join(sorted(manifest.tables))}"
        )
    files = [f for files in manifest.tables[name].values() for f in files]
    if name == PATIENTS.name and manifest.cohort is not None:
        files = [manifest.cohort]
    if not files:
        return TABLES[name].schema.empty_table()
    with ThreadPoolExecutor(_THREADS) as pool:
        wanted = _Wanted(columns, encoded, without)
        return pa.concat_tables(pool.map(partial(_read_file, location, manifest, wanted), files))


def table_rows(location: Location, files: Mapping[str, Sequence[str]]) -> int:
    """Rows of a table, given its files by part: from their footers alone, two requests a file.

    Raises `DatasetError` for a file that is not there or damaged.
    """
    return sum(_footer(location, f).num_rows for some in files.values() for f in some)


def _footer(location: Location, file: str) -> pq.FileMetaData:
    size = location.size(file) or 0
    try:
        end = _end(location, file, size, _FOOTER)
        length = int.from_bytes(end[-8:-4], "little") + 8  # of the footer, before its magic number
        if length > len(end):
            end = _end(location, file, size, length)
        return pq.read_metadata(io.BytesIO(end))
    except (FileNotFoundError, pa.ArrowException) as error:
        raise DatasetError(
            f"{location.path(file)}: not there, or no sound Parquet file ({error}); rebuild it "
            "with `lundprobe-zarr finalise`"
        ) from error


def _end(location: Location, file: str, size: int, length: int) -> bytes:
    return location.read_ranges([Range(file, max(0, size - length), size)])[0]


@contextmanager
def parquet_file(location: Location, file: str) -> Iterator[pq.ParquetFile]:
    """A file of a table, to be read piece by piece from a local disk, else from memory.

    Raises `DatasetError` if it is not there or cannot be read, then or later.
    """
    try:
        yield pq.ParquetFile(
            location.local(file)
            if location.is_local
            else io.BytesIO(read_object(location, file, "a table of the dataset"))
        )
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{location.path(file)}: not there, or no sound Parquet file ({error}); rebuild it "
            "with `lundprobe-zarr finalise`"
        ) from error


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a table, as `read_table` has it."""

    columns: Sequence[str] | None
    encoded: Sequence[str]
    without: Sequence[str]


def _read_file(location: Location, manifest: Manifest, wanted: _Wanted, file: str) -> pa.Table:
    where, sha256 = location.path(file), manifest.table_sha256.get(file)
    return read_sound(
        location,
        file,
        lambda: read_object(location, file, "a table of the dataset"),
        lambda data: _parquet(data, wanted, sha256, where),
    )


def _parquet(data: bytes, wanted: _Wanted, sha256: str | None, where: str) -> pa.Table:
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise DatasetError(
            f"{where}: {len(data)} bytes that are not those the manifest knows (SHA-256 {sha256}); "
            "if the dataset has been written anew meanwhile, open it again; else rebuild it with "
            "`lundprobe-zarr finalise`"
        )
    columns = list(wanted.columns) if wanted.columns else None
    try:
        # Not read_table: that imports pyarrow.dataset, a sixth of a second, and needs it not.
        parquet = pq.ParquetFile(io.BytesIO(data), read_dictionary=list(wanted.encoded))
        there = [c for c in parquet.schema_arrow.names if c not in wanted.without]
        table = parquet.read(columns=columns or there)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{where}: not a sound Parquet file ({error}); rebuild it with `lundprobe-zarr "
            "finalise`"
        ) from error
    absent = [c for c in columns or () if c not in table.column_names]
    if absent:
        raise DatasetError(
            f"{where}: has no column {', '.join(absent)}; expected every column of its schema; "
            "rebuild it with `lundprobe-zarr finalise --rebuild`"
        )
    return table


def open_store(location: Location, patient_id: str) -> StoreMetadata:
    """Metadata of one patient's store; one request. Raises `DamagedStoreError` if it is unsound."""
    return read_sound_store(location, patient_id)[0]


def read_sound_store(location: Location, patient_id: str) -> tuple[StoreMetadata, bytes]:
    """Metadata of one patient's store and its text; raises as `open_store` does."""
    place = store_path(patient_id)
    return read_sound(
        location,
        f"{place}/zarr.json",
        lambda: read_store(location, patient_id)[0],
        lambda text: (parse_store_of(patient_id, text, location.path(place)), text),
    )


def read_store(location: Location, patient_id: str) -> tuple[bytes, str]:
    """Text of a store's root `zarr.json` and the store's name for messages; one request.

    Raises `DamagedStoreError` if there is no such store.
    """
    path = store_path(patient_id)
    try:
        return location.read(f"{path}/zarr.json"), location.path(path)
    except FileNotFoundError as error:
        raise DamagedStoreError(
            f"{location.path(path)}: no store of patient {patient_id} there; expected one; "
            f"{remedy(location.path(path))}"
        ) from error
