"""Conditions as after WHERE: predicates on the patients table, or conditions on any one table."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lundprobe_zarr.dataset.arrow import to_numpy
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.schema.tables import PATIENTS
from lundprobe_zarr.sql.constants import check_condition_values
from lundprobe_zarr.sql.messages import kind_in_words
from lundprobe_zarr.sql.session import (
    Node,
    check_index,
    check_parameter,
    execute,
    is_bounded,
    is_changing,
    nodes,
    parse_select,
    shown,
)
from lundprobe_zarr.sql.worker import Limits, SqlWorker, worker

#: The end of a message about what is no condition.
CONDITION = "expected a condition such as n_fiducials = 3"
_SYNTAX = (
    "an SQL condition as after WHERE, combined with AND, OR, NOT, e.g. "
    "protocol = 'newAcq' AND n_fiducials = 3"
)
_SHELL = "SELECT 1 FROM {} WHERE\n{}\n"


def parse_condition(text: str, table: str = PATIENTS.name) -> Any:
    """Return the syntax tree of a condition on a table.

    Raises `QueryError` for anything beyond a WHERE clause, for a subquery, for a function whose
    value changes, and for a constant that its column cannot hold. Columns are not looked up.
    """
    condition = _parsed(text, table)
    for node in nodes(condition):
        _check_node(node, text)
    check_condition_values(condition, text, table)
    return condition


def _parsed(text: str, table: str) -> Node:
    if not text.strip():
        raise QueryError("the predicate is empty", remedy=CONDITION)
    tree = parse_select(text, _SHELL.format(table, text), _SYNTAX)
    found: Node = tree.pop("where_clause", None)
    if tree != _bare_shell(table):
        raise QueryError(
            "holds more than a condition",
            where=shown(text),
            expected="a condition as after WHERE, without ORDER BY, LIMIT, GROUP BY or UNION",
        )
    return found


@cache
def _bare_shell(table: str) -> Node:
    """Return the syntax tree around a condition."""
    tree = parse_select("true", _SHELL.format(table, "true"))
    del tree["where_clause"]
    return tree


def _check_node(node: Node, text: str) -> None:
    if node.get("class") == "SUBQUERY":
        raise QueryError(
            "holds a subquery",
            where=shown(text),
            remedy="use cohort.sql(...), then select by id: cohort[list(frame.patient_id)]",
        )
    if node.get("class") == "PARAMETER":
        check_parameter(node, text)
    check_index(node, text)
    if node.get("class") == "FUNCTION" and not node["is_operator"]:
        name = str(node["function_name"]).lower()
        if is_changing(name):
            raise QueryError(
                f"the value of {name}() changes between runs",
                where=shown(text),
                expected="a condition on the tables only, so that a cohort is reproducible",
            )


def rows_where(
    table: pa.Table, name: str, text: str, bounds: Limits, by: SqlWorker | None = None
) -> npt.NDArray[np.bool_]:
    """Return for each row of a table whether a condition on its own columns is true.

    It runs in this process if its time and memory are proportional to the number of rows; else
    `by` runs it within `bounds`, by default this process's worker. Raises `QueryError` if it is
    no condition on these columns, and `QueryLimitError` if it exceeds its bounds.
    """
    condition = parse_condition(text, name)
    statements = [
        f"EXPLAIN SELECT 1 FROM {name} WHERE (\n{text}\n)",  # refuses what WHERE may not hold
        f"DESCRIBE SELECT (\n{text}\n) FROM {name}",
        f"SELECT coalesce((\n{text}\n), false)::TINYINT AS held FROM {name}",
    ]

    def run(steps: list[str]) -> pa.Table:
        """Run statements in this process if their cost is bounded, else in a worker."""
        if is_bounded(condition):
            return execute(text, steps, {name: table}, CONDITION)
        return (by or worker()).run(text, steps, {name: table}, bounds, CONDITION)

    kind = run(statements[:2]).column("column_type")[0].as_py()
    if kind != "BOOLEAN":
        raise QueryError(
            f"is {kind_in_words(kind)}, not true or false", where=shown(text), remedy=CONDITION
        )
    held = run(statements[2:]).column("held").combine_chunks()
    found: npt.NDArray[np.bool_] = to_numpy(held, null=0) != 0
    return found
