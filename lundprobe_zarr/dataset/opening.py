"""Read the manifest and the tables of a converted dataset."""

from __future__ import annotations

import base64
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
from lundprobe_zarr.schema.tables import COMPARED, PATIENTS, TABLES
from lundprobe_zarr.storage.local import open_local
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.reread import read_object, read_verified
from lundprobe_zarr.vocabulary.files import PART_FOLDERS
from lundprobe_zarr.vocabulary.names import PATIENT_ID_FORM, PATIENT_ID_PATTERN, is_patient_id

#: Most files of a table read at a time.
_THREADS = 8
#: Bytes at the end of a table's file that usually hold its footer.
_FOOTER = 1 << 16
#: What pyarrow raises for a damaged file, invalid UTF-8 and absent columns included.
_UNSOUND = (pa.ArrowException, OSError, ValueError, KeyError)
#: Most characters of a wrong text in a message.
_SHOWN = 80


def open_manifest(location: Location) -> Manifest:
    """Return the dataset's manifest, in one request. Raises like `read_manifest`."""
    return read_manifest(location)[0]


def read_manifest(location: Location) -> tuple[Manifest, bytes]:
    """Return the dataset's manifest and its text, in one request.

    Raises `NotADatasetError` if there is none, `DatasetError` if it is damaged, and
    `SchemaVersionError` if its schema is newer than this version.
    """
    where = location.path(MANIFEST_NAME)
    try:
        return read_verified(
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
                expected="the root of a converted dataset, which is the folder that holds it",
                remedy="leave out the last part of the path",
            ) from error
        raise NotADatasetError(
            "not there",
            where=where,
            expected="the root of a converted dataset",
            remedy=_instead(location),
        ) from error


def _instead(location: Location) -> str:
    """Return the remedy for a location without a dataset, which depends on what is there."""
    if location.is_local:
        place = location.local().absolute()
        if holds_source(place):
            return "this is a source tree; convert it with `lundprobe-zarr convert SRC DEST`"
        if root := dataset_around(place):
            return f"this lies within the dataset {root}; give that"
        if is_patient_id(place.name) and not place.exists():
            return "this is a patient's id; give the dataset first"
    return (
        "convert with `lundprobe-zarr convert SRC DEST`, and after `--part` runs `lundprobe-zarr "
        "finalise`"
    )


def dataset_around(place: Path) -> Path | None:
    """Return the local dataset that `place` is or lies within; None if there is none."""
    folders = (place, *place.absolute().parents)
    return next((p for p in folders if (p / MANIFEST_NAME).is_file()), None)


def holds_source(place: Path) -> bool:
    """Return whether a local folder holds a source tree."""
    return any((place / folder).is_dir() for folder in PART_FOLDERS.values())


def maker_of(table: str, dataset: str | None = None) -> Command:
    """Return the command that makes a table of the schema which a dataset lacks."""
    if table in COMPARED:
        return Command("measure", dataset=dataset)
    return Command("finalise", ("--rebuild",), dataset)


def read_table(
    location: Location,
    manifest: Manifest,
    name: str,
    columns: Sequence[str] | None = None,
    encoded: Sequence[str] = (),
    without: Sequence[str] = (),
) -> pa.Table:
    """Return a table of the dataset: all parts in order, all rows.

    `columns` selects columns; None means all except those in `without`. Columns in `encoded`
    become Arrow dictionaries, one per chunk, which is much faster for repeated texts. Each file is
    read whole and its SHA-256 is compared with the manifest. Raises `UnknownLabelError` for an
    unknown table, or one that `measure` has still to make, and `DatasetError` for a damaged one.
    """
    if name in COMPARED and name not in manifest.tables:
        raise UnknownLabelError(
            f"no table {name!r} in {location.url}: not all its segmentations were compared",
            remedy="compare them with {command}",
            command=maker_of(name, location.url),
        )
    if name in TABLES and name not in manifest.tables:
        raise DatasetError(
            f"this dataset has no table {name}: an earlier version wrote it",
            where=location.url,
            expected="every table of the present schema",
            remedy="make it with {command}, which needs no source",
            command=maker_of(name, location.url),
        )
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
            expected="the same columns in all files",
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        ) from error
    if name == PATIENTS.name and "patient_id" in table.column_names:
        _require_ids(table.column("patient_id"), location.url)
    return table


def _require_ids(ids: pa.ChunkedArray, where: str) -> None:
    """Require valid and unique ids in the patients table: they give the paths of the stores."""
    fits = pc.match_substring_regex(ids, PATIENT_ID_PATTERN)
    if not pc.all(fits, min_count=0).as_py():
        wrong = ids.filter(pc.invert(fits))[0].as_py()
        raise DatasetError(
            f"the patients table has a patient {wrong[:_SHOWN]!r}",
            where=where,
            expected=f"patient ids: {PATIENT_ID_FORM}",
            remedy="do not use this table; write it again with {command}",
            command=Command("finalise"),
        )
    if len(ids) and pc.count_distinct(ids).as_py() < len(ids):
        raise DatasetError(
            "the patients table has a patient twice",
            where=where,
            expected="one row per patient",
            remedy="write it again with {command}",
            command=Command("finalise"),
        )


def table_rows(location: Location, files: Mapping[str, Sequence[str]]) -> int:
    """Return the number of rows of a table, from its files' footers: two requests per file.

    `files` are the files by part. Raises `DatasetError` for a missing or damaged file.
    """
    return sum(table_footer(location, f).num_rows for some in files.values() for f in some)


def table_footer(location: Location, file: str) -> pq.FileMetaData:
    """Return the footer of a table's file, in two requests. Raises like `table_rows`."""
    size = location.size(file) or 0
    try:
        end = _end(location, file, size, _FOOTER)
        length = int.from_bytes(end[-8:-4], "little") + 8  # footer, its length, magic number
        if length > len(end):
            end = _end(location, file, size, length)
        return pq.read_metadata(pa.BufferReader(end))
    except DatasetError:
        raise
    except _UNSOUND as error:
        raise _no_table(location.path(file), error) from error


def table_schema(location: Location, file: str) -> pa.Schema:
    """Return the columns of a table's file, from its footer. Raises like `table_rows`."""
    footer = table_footer(location, file)
    kept = (footer.metadata or {}).get(b"ARROW:schema")
    if kept is None:
        return footer.schema.to_arrow_schema()
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(kept)))  # has lists of fixed size


def _no_table(where: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"missing, or not a valid Parquet file ({error})",
        where=where,
        remedy="rebuild it with {command}",
        command=Command("finalise"),
    )


def _end(location: Location, file: str, size: int, length: int) -> bytes:
    return location.read_ranges([Range(file, max(0, size - length), size)])[0]


_REMEDY = "write it again with `lundprobe-zarr finalise`, or copy the dataset again"


@contextmanager
def parquet_file(location: Location, file: str) -> Iterator[pq.ParquetFile]:
    """Open a table's file: a local one is read piece by piece, a remote one is held in memory.

    Raises `DatasetError` if it is missing or cannot be read, also within the context.
    """
    try:
        if location.is_local:
            os.close(open_local(location.local(file)))  # refuses pipes and other special files
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
    """Arguments of `read_table` that select a table's columns."""

    name: str
    columns: Sequence[str] | None
    encoded: Sequence[str]
    without: Sequence[str]


def _read_file(location: Location, manifest: Manifest, wanted: _Wanted, file: str) -> pa.Table:
    where, sha256 = location.path(file), manifest.table_sha256.get(file)
    return read_verified(
        location,
        file,
        lambda: read_object(location, file, "a table of the dataset", remedy=_REMEDY),
        lambda data: _parquet(data, wanted, sha256, where),
    )


def _parquet(data: bytes, wanted: _Wanted, sha256: str | None, where: str) -> pa.Table:
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise DatasetError(
            f"{len(data)} bytes with another SHA-256 than in the manifest ({sha256})",
            where=where,
            remedy=(
                "if the dataset was rewritten since it was opened, open it again; "
                "otherwise rebuild it with {command}"
            ),
            command=Command("finalise"),
        )
    columns = list(wanted.columns) if wanted.columns else None
    try:
        # read_table would import pyarrow.dataset, which takes a sixth of a second. Arrow's own
        # threads may release `data` late, which aborts a process that is just exiting:
        # https://github.com/apache/arrow/issues/34314.
        parquet = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(wanted.encoded))
        _require_types(parquet.schema_arrow, wanted.name, where)
        others = [c for c in parquet.schema_arrow.names if c not in wanted.without]
        table = parquet.read(columns=columns or others, use_threads=False)
    except DatasetError:
        raise
    except _UNSOUND as error:
        raise DatasetError(
            f"not a valid Parquet file ({error})",
            where=where,
            remedy="rebuild it with {command}",
            command=Command("finalise"),
        ) from error
    absent = [c for c in columns or () if c not in table.column_names]
    if absent:
        raise DatasetError(
            f"has no column {', '.join(absent)}",
            where=where,
            expected="every column of the present schema",
            remedy="rebuild it with {command}, which also upgrades a dataset of an older schema",
            command=Command("finalise", ("--rebuild",)),
        )
    _require_values(table, wanted.name, where)
    return table


def _require_types(found: pa.Schema, name: str, where: str) -> None:
    """Require that each column occurs once and has the type of the table's schema."""
    expected = TABLES[name].schema if name in TABLES else pa.schema([])
    for field in found:
        kinds = [f.type for f in expected if f.name == field.name]
        if found.names.count(field.name) > 1 or not all(_alike(field.type, k) for k in kinds):
            raise DatasetError(
                f"column {field.name!r} has type {field.type}, or occurs twice",
                where=where,
                expected=" or ".join(map(str, kinds)) or "each column once",
                remedy="rebuild it with {command}",
                command=Command("finalise", ("--rebuild",)),
            )


def _alike(found: pa.DataType, expected: pa.DataType) -> bool:
    """Return whether types agree: lists may have a fixed size, texts may be dictionaries."""
    if pa.types.is_dictionary(found):
        return _alike(found.value_type, expected)
    kinds = (pa.types.is_list, pa.types.is_fixed_size_list)
    if all(any(is_kind(t) for is_kind in kinds) for t in (found, expected)):
        return _alike(found.value_type, expected.value_type)
    return bool(found == expected)


def _require_values(table: pa.Table, name: str, where: str) -> None:
    """Require values in columns that are not nullable, and valid UTF-8 in texts."""
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
            f"not a valid Parquet file ({error})",
            where=where,
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        ) from error
    if lacking:
        raise DatasetError(
            f"rows without {', '.join(lacking)}",
            where=where,
            expected="a value in every row",
            remedy="rebuild it with {command}",
            command=Command("finalise", ("--rebuild",)),
        )
