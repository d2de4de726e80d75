"""Run read-only SQL over a dataset's tables, restricted to the patients of a cohort."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.dataset.arrow import empty, to_arrow
from lundprobe_zarr.dataset.dataset import Dataset, Rows
from lundprobe_zarr.errors import Command, QueryError
from lundprobe_zarr.schema.tables import TABLES, VIEWS
from lundprobe_zarr.sql.constants import check_query_values
from lundprobe_zarr.sql.session import Node, check_index, nodes, parse_select, shown, tables_of
from lundprobe_zarr.sql.worker import Limits, SqlWorker, worker

_SYNTAX = "a SELECT in DuckDB's SQL; for a condition alone use cohort.where(...)"


@dataclass(frozen=True)
class Query:
    """A SELECT of the dataset's tables that was parsed and checked.

    Attributes
    ----------
    text : str
        The SELECT.
    tree : Node
        Its syntax tree.
    names : tuple of str
        The tables and views that it reads.
    """

    text: str
    tree: Node
    names: tuple[str, ...]

    def run(
        self, dataset: Dataset, rows: Rows, bounds: Limits, by: SqlWorker | None = None
    ) -> pa.Table:
        """Return its result for the patients in `rows`; `by` runs it, else this process's worker.

        Raises `QueryError` if DuckDB cannot run it, before any table is read, and
        `QueryLimitError` if it exceeds its bounds.
        """
        runner = by or worker()
        if not all(map(dataset.has_read, self.names)):
            blank = {name: empty(TABLES[_table_of(name)].schema) for name in self.names}
            runner.run(self.text, [f"EXPLAIN\n{self.text}"], blank, bounds)
        tables = {name: restricted(dataset, name, rows) for name in self.names}
        _require_columns(self.tree, tables, self.text)
        result = runner.run(self.text, [self.text], tables, bounds)
        return pa.table([_plain(c) for c in result.columns], names=result.column_names)


def parse_query(text: str) -> Query:
    """Parse and check a query without reading a table.

    Raises `QueryError` if it is not one SELECT of the dataset's tables.
    """
    tree = parse_select(text, expected=_SYNTAX)
    for node in nodes(tree):
        check_index(node, text)
    names = tables_of(tree, (*TABLES, *VIEWS), text)
    check_query_values(tree, text)
    return Query(text, tree, tuple(names))


def run_query(dataset: Dataset, text: str, rows: Rows, bounds: Limits) -> pa.Table:
    """Return the result of a SELECT over the tables, restricted to the patients in `rows`.

    Raises like `parse_query` and `Query.run`.
    """
    return parse_query(text).run(dataset, rows, bounds)


def tables_named(text: str, others: Collection[str] = ()) -> list[str]:
    """Return the tables and views that a SELECT reads, without reading any; `others` are known too.

    Raises `QueryError` if it is not one SELECT of these tables.
    """
    return tables_of(parse_select(text, expected=_SYNTAX), (*TABLES, *VIEWS, *others), text)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals as integers or floats: DuckDB's sum of integers is a decimal."""
    if not pa.types.is_decimal(column.type):
        return column
    largest = pc.max(pc.abs(column)).as_py() or 0
    whole = column.type.scale == 0 and largest < 2**63
    return column.cast(pa.int64() if whole else pa.float64())


def _table_of(name: str) -> str:
    return VIEWS[name].table if name in VIEWS else name


def _require_columns(tree: Node, tables: dict[str, pa.Table], text: str) -> None:
    """Raise `QueryError` for a column that the tables of an older schema lack."""
    absent = {
        column: name
        for name, table in tables.items()
        for column in TABLES[_table_of(name)].schema.names
        if column not in table.column_names
    }
    named = {n["column_names"][-1] for n in nodes(tree) if n.get("column_names")} if absent else ()
    for column in sorted(set(absent).intersection(named)):
        raise QueryError(
            f"no column {column!r} in the table {absent[column]} of this dataset",
            where=shown(text),
            expected="every column of the present schema",
            remedy="upgrade the dataset with {command}, which needs no source",
            command=Command("finalise", ("--rebuild",)),
        )


def restricted(dataset: Dataset, name: str, rows: Rows) -> pa.Table:
    """Return the rows of a table for the patients in `rows`. Raises like `Dataset.table`."""
    table = dataset.view(name) if name in VIEWS else dataset.table(name)
    if len(rows) == len(dataset.ids):
        return table
    if name == "patients":
        return table.take(to_arrow(rows))
    ids = dataset.columns("patients", ["patient_id"]).column(0).take(to_arrow(rows))
    return table.filter(pc.is_in(table.column("patient_id"), value_set=ids.combine_chunks()))
