"""Read audit logs as a table, and sum up who read what of which patients."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.vocabulary.names import PATIENT_ID_PATTERN

#: Name of the table in SQL.
TABLE = "audit"
#: Columns as lines have them; times are UTC.
_LINES = pa.schema(
    {
        "time": pa.string(),
        "event": pa.string(),
        "id": pa.string(),
        "caller": pa.string(),
        "address": pa.string(),
        "method": pa.string(),
        "route": pa.string(),
        "dataset": pa.string(),
        "sha": pa.string(),
        "path": pa.string(),
        "range": pa.string(),
        "sql": pa.string(),
        "status": pa.int64(),
        "bytes": pa.int64(),
        "ms": pa.float64(),
    }
)
#: The same with times as such, UTC.
_PARSED = _LINES.set(_LINES.get_field_index("time"), pa.field("time", pa.timestamp("ms")))
#: A line is at most this long, bytes.
_BLOCK = 8 << 20
_PATIENT = re.compile(PATIENT_ID_PATTERN.strip("^$"))
#: Routes that list files and give none.
_LIST = re.compile(r"/api/datasets/[^/]+/[^/]+/(tree|paths-info)/")

#: Who read what of which patients. An answer counts that gave data or named where they are (302);
#: one that was cut counts by what was sent. `cut` are those whose end was never written.
SUMMARY = """
SELECT caller, dataset, patient_id, content, count(*) AS requests, sum(bytes) AS bytes,
       date_trunc('second', min(time)) AS first, date_trunc('second', max(time)) AS last,
       count(*) FILTER (WHERE event = 'begun') AS cut
FROM audit
WHERE dataset IS NOT NULL AND method <> 'HEAD' AND (
  event = 'begun' OR status = 302
  OR (bytes > 0 AND (status < 300 OR status = 499 OR (status = 500 AND id IS NOT NULL)))
)
GROUP BY ALL
ORDER BY caller NULLS FIRST, dataset, patient_id NULLS FIRST, content
"""


def read_audit(files: Sequence[Path]) -> tuple[pa.Table, list[str]]:
    """Return the lines of audit logs as a table, and which of them could not be read.

    To the columns of the lines it adds `patient_id`, of the path or URL that was asked for, and
    `content`: `voxels` for files of a patient's store, else `tables` (lists of files too), null
    where no file of a dataset was asked for. The line before an answer's first piece is left out
    where that of its end is there. A file that is given twice counts once; one named `.gz` is
    expanded.

    Raises `UsageError` for a file that cannot be read.
    """
    tables, damaged, seen = [_PARSED.empty_table()], [], set()
    for file in files:
        try:
            found = os.stat(file)  # noqa: PTH116
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            data = file.read_bytes()
            text = gzip.decompress(data) if file.suffix == ".gz" else data
        except (OSError, EOFError) as error:
            why = getattr(error, "strerror", None) or "it is not gzip"
            raise UsageError(str(why), where=file, expected="an audit log of the service") from None
        table, bad = _parsed(text)
        tables.append(table)
        damaged += [f"{file}: line {number}" for number in bad]
    return _completed(pa.concat_tables(tables)), damaged


def _parsed(text: bytes) -> tuple[pa.Table, list[int]]:
    """Return the lines of a log, and the numbers of those that are none."""
    try:
        return _table(text), []
    except pa.ArrowInvalid:
        good, bad = [], []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                _table(line)
            except pa.ArrowInvalid:
                bad.append(number)
            else:
                good.append(line)
        return _table(b"\n".join(good)), bad


def _table(text: bytes) -> pa.Table:
    """Return lines as a table. Raises `ArrowInvalid` if one is no line of a log."""
    if not text.strip():
        return _PARSED.empty_table()
    found = pyarrow.json.read_json(
        io.BytesIO(text),
        read_options=pyarrow.json.ReadOptions(block_size=_BLOCK),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=_LINES, unexpected_field_behavior="ignore"
        ),
    )
    if found.column("time").null_count or found.column("status").null_count:
        raise pa.ArrowInvalid("a line without time or status")
    time = found.column("time").cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("ms"))
    found = found.select(_LINES.names)
    return found.set_column(_LINES.get_field_index("time"), "time", time)


def _completed(table: pa.Table) -> pa.Table:
    """Add the columns that follow from others; leave out beginnings whose end is there."""
    is_begun = pc.fill_null(pc.equal(table.column("event"), "begun"), False)
    ended = table.filter(pc.invert(is_begun)).column("id").drop_null()
    cut = pc.and_(is_begun, pc.invert(pc.is_in(table.column("id"), value_set=ended)))
    table = table.filter(pc.or_(pc.invert(is_begun), cut))
    derived = list(_derived(table))
    for position, name in enumerate(("patient_id", "content")):
        column = pa.array([row[position] for row in derived], pa.string())
        table = table.append_column(name, column)
    return table.sort_by("time")


def _derived(table: pa.Table) -> Iterator[tuple[str | None, str | None]]:
    """Yield the patient and the content of each line."""
    known: dict[Any, tuple[str | None, str | None]] = {}
    columns = (table.column(name).to_pylist() for name in ("dataset", "path", "route"))
    for asked in zip(*columns, strict=True):
        if asked not in known:
            dataset, path, route = asked
            is_list = _LIST.match(route or "")
            found = None if is_list else _PATIENT.search(path or "") or _PATIENT.search(route or "")
            content = "voxels" if found else "tables"
            known[asked] = (found and found[0], content if dataset else None)
        yield known[asked]
