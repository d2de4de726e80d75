"""Open a converted dataset: its manifest and its tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lundprobe_zarr.errors import (
    Command,
    DatasetError,
    NotADatasetError,
    UnknownLabelError,
)
from lundprobe_zarr.schema.manifest import MANIFEST_NAME, Manifest, parse_manifest
from lundprobe_zarr.schema.tables import PATIENTS, TABLES
from lundprobe_zarr.storage.local import open_local
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.reread import read_object, read_sound
from lundprobe_zarr.vocabulary.files import PART_FOLDERS
from lundprobe_zarr.vocabulary.names import PATIENT_ID_FORM, PATIENT_ID_PATTERN, is_patient_id

#: Files of a table read at a time.
_THREADS = 8
#: Bytes at the end of a table's file that hold its footer, as a rule.
_FOOTER = 1 << 16
#: What pyarrow raises for a damaged file: of a text that is no UTF-8, a column it has not, too.
_UNSOUND = (pa.ArrowException, OSError, ValueError, KeyError)
#: Characters of a text that is not what it should be, in a message.
_SHOWN = 80


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
                "a manifest",
                where=location.url,
                expected=("the root of a converted dataset, which is the folder that holds it"),
                remedy="leave out the last part",
            ) from error
        raise NotADatasetError(
            "not there",
            where=where,
            expected="the root of a converted dataset",
            remedy=_instead(location),
        ) from error


def _instead(location: Location) -> str:
    """What to do where no dataset is: by what is there, or else how one is made."""
    if location.is_local:
        place = location.local().absolute()
        if holds_source(place):
            return "this is a source tree; convert it with `lundprobe-zarr convert SRC DEST`"
        if root := dataset_around(place):
            return f"{root} is one, and this lies in it"
        if is_patient_id(place.name) and not place.exists():
            return "this is a patient's id, which comes after the dataset"
    return (
        "convert with `lundprobe-zarr convert SRC DEST`, and after `--part` runs `lundprobe-zarr "
        "finalise`"
    )


def dataset_around(place: Path) -> Path | None:
    """The dataset on a local disk that `place` is, or lies in; None if there is none."""
    folders = (place, *place.absolute().parents)
    return next((p for p in folders if (p / MANIFEST_NAME).is_file()), None)


def holds_source(place: Path) -> bool:
    """Whether a local folder holds a source tree."""
    return any((place / folder).is_dir() for folder in PART_FOLDERS.values())


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
            f"no table {name!r} in {location.url}",
            remedy=f"it has {', '.join(sorted(manifest.tables))}",
        )
    files = [f for files in manifest.tables[name].values() for f in files]
    if name == PATIENTS.name and manifest.cohort is not None:
        files = [manifest.cohort]
    if not files:
        return TABLES[name].schema.empty_table()
    with ThreadPoolExecutor(_THREADS) as pool:
        wanted = _Wanted(name, columns, encoded, without)
        tables = list(pool.map(partial(_read_file, location, manifest, wanted), files))
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DatasetError(
            f"files of the table {name} differ in their columns",
            where=location.url,
            expected="the same in all",
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        ) from error
    if name == PATIENTS.name and "patient_id" in table.column_names:
        _require_ids(table.column("patient_id"), location.url)
    return table


def _require_ids(ids: pa.ChunkedArray, where: str) -> None:
    """Require that the patients table names patients, each once: their stores are found by it."""
    fits = pc.match_substring_regex(ids, PATIENT_ID_PATTERN)
    if not pc.all(fits, min_count=0).as_py():
        wrong = ids.filter(pc.invert(fits))[0].as_py()
        raise DatasetError(
            f"the patients table has a patient {wrong[:_SHOWN]!r}",
            where=where,
            expected=f"ids, which are {PATIENT_ID_FORM}",
            remedy="do not use it: write it anew with {command}",
            command=Command("finalise"),
        )
    if len(ids) and pc.count_distinct(ids).as_py() < len(ids):
        raise DatasetError(
            "the patients table has a patient twice",
            where=where,
            expected="a row each",
            remedy="write it anew with {command}",
            command=Command("finalise"),
        )


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
        return pq.read_metadata(pa.BufferReader(end))
    except DatasetError:
        raise
    except _UNSOUND as error:
        raise _no_table(location.path(file), error) from error


def _no_table(where: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"not there, or no sound Parquet file ({error})",
        where=where,
        remedy="rebuild it with {command}",
        command=Command("finalise"),
    )


def _end(location: Location, file: str, size: int, length: int) -> bytes:
    return location.read_ranges([Range(file, max(0, size - length), size)])[0]


_REMEDY = "write it anew with `lundprobe-zarr finalise`, or copy the dataset again"


@contextmanager
def parquet_file(location: Location, file: str) -> Iterator[pq.ParquetFile]:
    """A file of a table, to be read piece by piece from a local disk, else from memory.

    Raises `DatasetError` if it is not there or cannot be read, then or later.
    """
    try:
        if location.is_local:
            os.close(open_local(location.local(file)))  # which refuses what might never end
            yield pq.ParquetFile(location.local(file))
        else:
            held = read_object(location, file, "a table of the dataset", remedy=_REMEDY)
            yield pq.ParquetFile(pa.BufferReader(held))
    except DatasetError:
        raise
    except _UNSOUND as error:
        raise _no_table(location.path(file), error) from error


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a table, as `read_table` has it."""

    name: str
    columns: Sequence[str] | None
    encoded: Sequence[str]
    without: Sequence[str]


def _read_file(location: Location, manifest: Manifest, wanted: _Wanted, file: str) -> pa.Table:
    where, sha256 = location.path(file), manifest.table_sha256.get(file)
    return read_sound(
        location,
        file,
        lambda: read_object(location, file, "a table of the dataset", remedy=_REMEDY),
        lambda data: _parquet(data, wanted, sha256, where),
    )


def _parquet(data: bytes, wanted: _Wanted, sha256: str | None, where: str) -> pa.Table:
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise DatasetError(
            f"{len(data)} bytes that are not those the manifest knows (SHA-256 {sha256})",
            where=where,
            remedy=(
                "if the dataset has been written anew meanwhile, open it again; "
                "else rebuild it with {command}"
            ),
            command=Command("finalise"),
        )
    columns = list(wanted.columns) if wanted.columns else None
    try:
        # Not read_table: that imports pyarrow.dataset, a sixth of a second, and needs it not.
        # Arrow's own threads would let go of `data` when they come to it, which aborts a process
        # that ends meanwhile: https://github.com/apache/arrow/issues/34314.
        parquet = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(wanted.encoded))
        _require_types(parquet.schema_arrow, wanted.name, where)
        there = [c for c in parquet.schema_arrow.names if c not in wanted.without]
        table = parquet.read(columns=columns or there, use_threads=False)
    except DatasetError:
        raise
    except _UNSOUND as error:
        raise DatasetError(
            f"not a sound Parquet file ({error})",
            where=where,
            remedy="rebuild it with {command}",
            command=Command("finalise"),
        ) from error
    absent = [c for c in columns or () if c not in table.column_names]
    if absent:
        raise DatasetError(
            f"has no column {', '.join(absent)}",
            where=where,
            expected="every column of its schema",
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        )
    _require_values(table, wanted.name, where)
    return table


def _require_types(found: pa.Schema, name: str, where: str) -> None:
    """Require that columns of a table are of the types they should have, each there once."""
    expected = TABLES[name].schema if name in TABLES else pa.schema([])
    for field in found:
        kinds = [f.type for f in expected if f.name == field.name]
        if found.names.count(field.name) > 1 or not all(_alike(field.type, k) for k in kinds):
            raise DatasetError(
                f"column {field.name!r} is {field.type}, or there twice",
                where=where,
                expected=" or ".join(map(str, kinds)) or "it once",
                remedy="rebuild it with {command}",
                command=Command("finalise", ("--rebuild",)),
            )


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether two types hold the same: lists may be of fixed size, texts may be encoded."""
    if pa.types.is_dictionary(found):
        return _alike(found.value_type, expected)
    kinds = (pa.types.is_list, pa.types.is_fixed_size_list)
    if all(any(is_kind(t) for is_kind in kinds) for t in (found, expected)):
        return _alike(found.value_type, expected.value_type)
    return bool(found == expected)


def _require_values(table: pa.Table, name: str, where: str) -> None:
    """Require that columns which always have a value have one, and that texts are texts."""
    expected = TABLES[name].columns if name in TABLES else ()
    lacking = [
        c.name
        for c in expected
        if not c.nullable and c.name in table.column_names and table[c.name].null_count
    ]
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DatasetError(
            f"not a sound Parquet file ({error})",
            where=where,
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        ) from error
    if lacking:
        raise DatasetError(
            f"rows without {', '.join(lacking)}",
            where=where,
            expected="it in every row",
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        )
