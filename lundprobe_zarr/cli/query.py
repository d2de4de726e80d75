"""`query`: patients that an SQL predicate selects, or the rows of a SELECT over the tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
from lundprobe_zarr.errors import QueryError, UnknownLabelError, UsageError
from lundprobe_zarr.vocabulary.suggest import suggestion

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Columns of patients in the form `table` by default; the other forms have all.
_SHOWN = ("patient_id", "part", "protocol", "missing_structures", "n_fiducials", "dose_max_gy")
#: How a query begins, blanks and comments aside. SQL reserves these words: no predicate does.
_QUERY = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:SELECT|WITH|FROM)\b", re.IGNORECASE | re.DOTALL
)


class Format(StrEnum):
    """Form of the output."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


FormOption = Annotated[
    Format | None,
    typer.Option(
        "--format", help="Form of the result [default: table, or by the name of the --output file]."
    ),
]
OutputFile = Annotated[
    Path | None, typer.Option("--output", help="Write to this file, replacing it.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="End the query after this time.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory limit of the query, e.g. 500MB or 4GB.")
]


def query(
    dataset: Dataset,
    sql: Annotated[str, typer.Argument(help="A predicate, or a SELECT; quote it.")],
    form: FormOption = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME...]", help="Columns to show of the chosen patients."),
    ] = None,
    output: OutputFile = None,
    storage_options: StorageOptions = None,
    timeout: Timeout = 60.0,
    memory: Memory = "2GB",
) -> None:
    """List the patients for whom a predicate is true, or query all tables with SQL.

    SQL that begins with SELECT, WITH or FROM is a query over the tables patients, structures,
    dvh, slices, foreground, intensity and arrays, read-only, in DuckDB's SQL; its rows are the
    output.
    Anything else is a predicate over a patient's columns and structures (Rectum.volume_cc > 60),
    and the output has the patients for whom it is true: as a table some of their columns, as csv,
    json and parquet all. `lundprobe-zarr info DATASET --columns` lists the columns.
    """
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.sql.worker import limits, worker

    chosen_form = output_form(form, output)
    bounds: dict[str, Any] = {"timeout": timeout, "memory": memory}
    limits(**bounds)
    is_query = _QUERY.match(sql) is not None
    if is_query:
        worker().prepare()  # it starts while the dataset is opened
    cohort = open_cohort(dataset, parse_options(storage_options))
    if is_query:
        if columns is not None:
            raise UsageError(f"--columns {columns}: of a query, name the columns after SELECT")
        found = named_once(cohort.sql_table(sql, **bounds))
        summary = f"{found.num_rows} {'row' if found.num_rows == 1 else 'rows'}"
    else:
        patients = cohort.where(sql, **bounds).table("patients")
        found = patients.select(_columns(columns, patients.column_names, chosen_form))
        summary = f"{found.num_rows} of {len(cohort)} patients"
    write_rows(found, chosen_form, output, summary)


def output_form(form: Format | None, output: Path | None) -> Format:
    """Return the form asked for. Raises `UsageError` where it would be binary on a terminal."""
    named = {f".{f.value}": f for f in Format if f is not Format.table}
    suffix = output.suffix.lower() if output else ""
    chosen = named.get(suffix, Format.table) if form is None else form
    if output is not None and chosen is Format.table:
        raise UsageError(
            f"--output {output}: a table is for people to read",
            expected=(f"a name that ends in {', '.join(named)}, or one of these as --format"),
        )
    if chosen is Format.parquet and output is None and sys.stdout.isatty():
        raise UsageError(
            "parquet is binary: not for a terminal", remedy="give a file with --output"
        )
    return chosen


def _columns(given: str | None, known: Sequence[str], form: Format) -> list[str]:
    if given is None:
        return [c for c in _SHOWN if c in known] if form is Format.table else list(known)
    names = [c.strip() for c in given.split(",") if c.strip()]
    unknown = [c for c in names if c not in known]
    if unknown:
        raise UnknownLabelError(
            f"--columns: no column {', '.join(unknown)} in the patients table",
            remedy=(
                f"{suggestion(unknown[0], known)}; `lundprobe-zarr info DATASET "
                "--columns` lists all"
            ),
        )
    return names


def arrow_table(frame: pd.DataFrame) -> pa.Table:
    """Return a frame as a table, without its index and attributes."""
    import pyarrow as pa

    plain = frame.copy(deep=False)
    plain.attrs = {}  # pandas would write them into the file
    return pa.Table.from_pandas(plain, preserve_index=False)


def named_once(found: pa.Table) -> pa.Table:
    """Return the result of a query; raise `QueryError` if two of its columns have one name."""
    names = found.column_names
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise QueryError(
            f"two columns of the result are named {', '.join(twice)}",
            expected="a name each: write … AS another_name",
        )
    return found


def write_rows(found: pa.Table, form: Format, output: Path | None, summary: str) -> None:
    """Print rows, or write them to a file; `summary` counts them for people."""
    if form is Format.table:
        _show_table(found, summary)
        return
    data = _ENCODERS[form](found)
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        from lundprobe_zarr.storage.local import named

        with named(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(data)
        typer.echo(f"Wrote {summary} to {output.resolve()}.")


def _parquet(found: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(found, file, compression="zstd")
    return file.getvalue()


def _json(found: pa.Table) -> bytes:
    rows = [{n: _plain(v) for n, v in row.items()} for row in found.to_pylist()]
    return (json.dumps(rows, indent=2) + "\n").encode()


def _csv(found: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found.column_names)
    for row in found.to_pylist():
        values = (_plain(v) for v in row.values())
        writer.writerow([json.dumps(v) if isinstance(v, (list, dict)) else v for v in values])
    return text.getvalue().encode()


_ENCODERS: dict[Format, Callable[[pa.Table], bytes]] = {
    Format.csv: _csv,
    Format.json: _json,
    Format.parquet: _parquet,
}


def _plain(value: Any) -> Any:
    """Return a value for JSON: dates as text, infinity as text, NaN as null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Decimal):  # as DuckDB takes 1.5, where it is inside a list
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _show_table(found: pa.Table, summary: str) -> None:
    import pyarrow as pa

    from lundprobe_zarr.cli.console import say, table

    rows = [[_cell(v) for v in row.values()] for row in found.to_pylist()]
    numeric = (pa.types.is_integer, pa.types.is_floating)
    numbers = [f.name for f in found.schema if any(is_kind(f.type) for is_kind in numeric)]
    table(found.column_names, rows, right=numbers)
    say(summary)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
