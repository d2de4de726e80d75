"""`query`: which patients an SQL predicate chooses."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
from lundprobe_zarr.errors import UnknownLabelError

if TYPE_CHECKING:
    import pandas as pd

#: Columns shown to people unless they ask for others; csv and json have all.
_SHOWN = ("patient_id", "part", "protocol", "missing_structures", "n_fiducials", "dose_max_gy")


class Format(StrEnum):
    """Form of the output."""

    table = "table"
    csv = "csv"
    json = "json"


def query(
    dataset: Dataset,
    predicate: Annotated[
        str, typer.Argument(help="SQL over the columns of the patients table; quote it.")
    ],
    output: Annotated[
        Format, typer.Option("--format", help="csv and json have every column.")
    ] = Format.table,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]", help="Just these columns.")
    ] = None,
    storage_options: StorageOptions = None,
) -> None:
    """List the patients for which an SQL predicate holds.

    The columns are those of the patients table: see `lundprobe-zarr info DATASET --columns`.
    """
    from lundprobe_zarr.cohort import open_cohort

    cohort = open_cohort(dataset, parse_options(storage_options))
    chosen = cohort.where(predicate)
    frame = chosen.patients
    known = [str(c) for c in frame.columns]
    default = [c for c in _SHOWN if c in known] if output is Format.table else known
    names = _chosen(columns, known) if columns is not None else default
    rows = records(frame[names])
    if output is Format.json:
        typer.echo(json.dumps(rows, indent=2))
    elif output is Format.csv:
        _write_csv(names, rows)
    else:
        _show_table(names, rows, len(chosen), len(cohort))


def _chosen(columns: str, known: Sequence[str]) -> list[str]:
    names = [c.strip() for c in columns.split(",") if c.strip()]
    unknown = [c for c in names if c not in known]
    if unknown:
        raise UnknownLabelError(
            f"--columns: no column {', '.join(unknown)} in the patients table; it has "
            f"{', '.join(known)}"
        )
    return names


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain Python values, lists as lists and missing ones as None."""
    text = frame.to_json(orient="records", double_precision=15)
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def _write_csv(names: Sequence[str], rows: list[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row[n] for n in names)
        writer.writerow([json.dumps(v) if isinstance(v, list) else v for v in values])


def _show_table(names: Sequence[str], rows: list[dict[str, Any]], chosen: int, known: int) -> None:
    from lundprobe_zarr.cli.console import say, table

    numbers = [n for n in names if rows and isinstance(rows[0][n], (int, float))]
    table(names, ([_cell(row[n]) for n in names] for row in rows), right=numbers)
    say(f"{chosen} of {known} patients")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
