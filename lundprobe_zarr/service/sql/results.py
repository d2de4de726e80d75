"""Results of SQL as Arrow, Parquet, CSV or JSON, whichever the client asks for."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.http.operations import invalid
from lundprobe_zarr.service.hub.viewer import finite
from lundprobe_zarr.sql.child import as_stream
from lundprobe_zarr.vocabulary.suggest import suggestion

#: Bytes, as Arrow holds them, of what is written as text at a time.
_PIECE = 200_000


@dataclass(frozen=True)
class Format:
    """A form of a result: its name in `?format=`, its media type, and how it is written."""

    name: str
    media_type: str
    write: Callable[[pa.Table, bool], bytes]


def _json(table: pa.Table, is_cut: bool) -> bytes:
    head = {"columns": table.column_names, "types": [str(kind) for kind in table.schema.types]}
    end = {"num_rows": table.num_rows, "truncated": is_cut}
    rows = ",".join(filter(None, map(_json_rows, _pieces(table))))
    return f'{_dumped(head)[:-1]},"rows":[{rows}],{_dumped(end)[1:]}'.encode()


def _json_rows(table: pa.Table) -> str:
    columns = [column.to_pylist() for column in table.columns]
    return _dumped([finite(list(row)) for row in zip(*columns, strict=True)])[1:-1]


def _dumped(value: Any) -> str:
    return json.dumps(value, default=_text, separators=(",", ":"))


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table in pieces: a long one would hold the interpreter, and all other requests."""
    rows = max(1, table.num_rows * _PIECE // max(1, table.nbytes))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _text(value: Any) -> str:
    """Return what JSON has no form for: bytes as base64, times and others as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _csv(table: pa.Table, is_cut: bool) -> bytes:
    del is_cut  # said in a header
    sink = io.BytesIO()
    schema = pa.schema([f.with_type(_csv_type(f.type)) for f in table.schema])
    with pyarrow.csv.CSVWriter(sink, schema) as writer:
        for piece in _pieces(table):
            columns = [_flat(column) for column in piece.columns]
            writer.write_table(pa.table(columns, schema=schema))
    return sink.getvalue()


def _csv_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_nested(kind) else kind


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as CSV can hold it: lists and structures as JSON."""
    if not pa.types.is_nested(column.type):
        return column
    values = column.to_pylist()
    texts = [None if value is None else _dumped(finite(value)) for value in values]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _parquet(table: pa.Table, is_cut: bool) -> bytes:
    del is_cut
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _arrow(table: pa.Table, is_cut: bool) -> bytes:
    del is_cut
    return bytes(as_stream(table))


#: The first is the default.
FORMATS = (
    Format("json", "application/json", _json),
    Format("arrow", "application/vnd.apache.arrow.stream", _arrow),
    Format("parquet", "application/vnd.apache.parquet", _parquet),
    Format("csv", "text/csv", _csv),
)
NAMES = tuple(form.name for form in FORMATS)


def format_of(name: str | None, accept: str | None) -> Format:
    """Return the form that a request asks for: by name, else by its `Accept` header.

    Raises `HttpError`: 422 for an unknown name, 406 if no form is acceptable.
    """
    if name is not None:
        found = next((form for form in FORMATS if form.name == name), None)
        if found is None:
            raise invalid(f"There is no format {name[:40]!r}; {suggestion(name, NAMES)}.")
        return found
    wanted = _preferred(accept or "*/*")
    for media in wanted:
        for form in FORMATS:
            if media in (form.media_type, f"{form.media_type.partition('/')[0]}/*", "*/*"):
                return form
    known = ", ".join(form.media_type for form in FORMATS)
    raise HttpError(406, f"No acceptable form of the result; there are {known}.")


def _preferred(accept: str) -> list[str]:
    """Return the media types of an `Accept` header, the most wanted first; RFC 9110, 12.5.1."""
    found: list[tuple[float, str]] = []
    for each in accept.split(","):
        media, *parameters = (part.strip().lower() for part in each.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            share = float(weight)
        except ValueError:
            share = 0.0
        if share > 0:
            found.append((-share, media))
    return [media for _, media in sorted(found, key=lambda pair: pair[0])]


def written(table: pa.Table, form: Format, is_cut: bool) -> bytes:
    """Return a result in a form. Raises `HttpError` (422) for values that it cannot hold."""
    try:
        return form.write(table, is_cut)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise invalid(
            f"The result cannot be written as {form.name} ({error}). Ask for another format, or "
            "cast the column to VARCHAR."
        ) from error
