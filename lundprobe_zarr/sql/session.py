"""SQL over Arrow tables only: no access to files, network, extensions, settings or variables.

DuckDB's own parser checks a text before it runs: it must be one SELECT of known tables. The
database is empty, has no external access, and its configuration is locked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa

from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.schema.tables import COMPARED
from lundprobe_zarr.sql.messages import position_of, reason
from lundprobe_zarr.vocabulary.suggest import suggestion

#: A node of the syntax tree, as returned by DuckDB's `json_serialize_sql`.
Node = dict[str, Any]

#: Memory limit of bounded queries, bytes. Other queries run in a child process: see `worker`.
MEMORY_LIMIT = 2_000_000_000
_MOST_THREADS = 4
#: DuckDB's parser takes minutes for longer SQL. The ids of all 467 patients are 13,000 characters.
_MOST_CHARACTERS = 100_000
#: DuckDB's message after Ctrl-C.
_INTERRUPTED = "Query interrupted"
QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
#: Functions whose value changes between runs, but which access nothing.
_HARMLESS = {"random", "uuid", "gen_random_uuid", "now", "today", "get_current_timestamp"}
#: Functions that depend on the session, although DuckDB's catalogue may call them stable.
_OF_SESSION = {"current_setting", "getvariable"}
#: Common functions whose value depends on their arguments only. Others are looked up in DuckDB's
#: catalogue, which takes 20 ms.
# fmt: off
STEADY = frozenset({
    "abs", "avg", "ceil", "contains", "count", "count_star", "floor", "greatest", "least",
    "len", "length", "list_contains", "lower", "max", "median", "min", "quantile_cont",
    "regexp_matches", "round", "sqrt", "starts_with", "stddev", "sum", "upper",
})
# fmt: on
#: Functions and node classes of a predicate of bounded cost.
_BOUNDED = STEADY | {"+", "-", "*", "/", "//", "%"}
_BOUNDED_CLASSES = {
    *("BETWEEN", "CASE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
    "OPERATOR",
}
_SHOWN_CHARACTERS = 300
#: DuckDB's error type for valid SQL that is no SELECT.
_NO_SELECT = "not implemented"


def shown(text: str) -> str:
    """Return a text for a message: quoted, and cut if it is long."""
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
    return repr(cut)


@cache
def _database(process: int, memory: int) -> duckdb.DuckDBPyConnection:
    """Return an empty, locked database, one per process: its threads do not survive a fork."""
    return duckdb.connect(
        config={
            "enable_external_access": False,
            "python_enable_replacements": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": f"{memory}B",
            "threads": min(_MOST_THREADS, os.cpu_count() or 1),
            "temp_directory": "",  # no spilling: patient data must not be left on a disk
            "lock_configuration": True,
        }
    )


@contextmanager
def session(
    text: str, tables: Mapping[str, pa.Table], remedy: str = "", memory: int = MEMORY_LIMIT
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection to `tables` only; DuckDB's errors become `QueryError`s about `text`.

    `remedy` ends their messages. `memory` is DuckDB's own memory limit, bytes.
    """
    connection = _database(os.getpid(), memory).cursor()
    try:
        for name, table in tables.items():
            connection.register(name, table)
        yield connection
    except duckdb.Error as error:
        end = f"; {remedy}" if remedy else ""
        found = QueryError(f"{reason(str(error))}{end}", where=shown(text))
        found.position = position_of(str(error), text)
        raise found from error
    except UnicodeDecodeError as error:  # DuckDB can cut its quotation within a character
        end = f"; {remedy}" if remedy else ""
        raise QueryError(f"not valid SQL for DuckDB{end}", where=shown(text)) from error
    except RuntimeError as error:
        if str(error) != _INTERRUPTED:
            raise
        raise KeyboardInterrupt from error
    finally:
        connection.close()


def execute(
    text: str,
    statements: Sequence[str],
    tables: Mapping[str, pa.Table],
    remedy: str = "",
    memory: int = MEMORY_LIMIT,
    rows: int | None = None,
) -> pa.Table:
    """Run statements over `tables` and return the last one's result. Raises like `session`.

    `rows` is the most rows to return.
    """
    with session(text, tables, remedy, memory) as connection:
        for statement in statements[:-1]:
            connection.execute(statement).fetchall()  # DuckDB requires reading the whole result
        found = _relation(connection, statements[-1])
        return (found if rows is None else found.limit(rows)).to_arrow_table()


def _relation(connection: duckdb.DuckDBPyConnection, statement: str) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(statement)
    except (duckdb.BinderException, duckdb.CatalogException):
        connection.execute(statement)  # fails before it runs, and says where the mistake is
        raise


def is_bounded(condition: Any) -> bool:
    """Return whether a predicate's time and memory are proportional to the number of rows.

    This holds for comparisons, arithmetic and the functions in `STEADY`. It does not hold for
    functions that make lists or texts of any length (`range`, `repeat`, lambdas, casts to arrays),
    nor for LIKE.
    """
    return all(
        node["class"] in _BOUNDED_CLASSES
        and (node["class"] != "FUNCTION" or node["function_name"].lower() in _BOUNDED)
        and node.get("type") != "ARRAY_CONSTRUCTOR"
        for node in nodes(condition)
        if "class" in node
    )


def parse_select(text: str, whole: str | None = None, expected: str = "DuckDB's SQL") -> Node:
    """Return the syntax tree of `whole` (default: `text`), which must be one SELECT statement.

    Raises `QueryError` for anything else. Its message quotes `text` and states what was `expected`.
    """
    tree = _parsed(text, text if whole is None else whole)
    if tree["error"]:
        error = QueryError(str(_complaint(tree, expected)), where=shown(text))
        error.position = _position(tree, text, text if whole is None else whole)
        raise error
    if len(tree["statements"]) != 1:
        raise QueryError(
            f"{len(tree['statements'])} statements", where=shown(text), expected="one SELECT"
        )
    node: Node = tree["statements"][0]["node"]
    return node


def constant(node: Node) -> str | None:
    """Return a constant as text without quotes, from DuckDB 1 or 2; None for any other node."""
    if node.get("class") != "CONSTANT":
        return None
    if node.get("literal", {}).get("kind") == "NULL_LITERAL":
        return None
    if "literal" in node:
        found = node["literal"].get("text")
    else:
        found = node["value"].get("value")
        kind = node["value"].get("type") or {}
        if found is not None and kind.get("id") == "DECIMAL":  # DuckDB 1 keeps 1.0 as 10, scale 1
            found = Decimal(found).scaleb(-kind["type_info"]["scale"])
    return None if found is None else str(found)


def check_index(node: Node, text: str) -> None:
    """Raise `QueryError` for element 0 of a list: it is NULL in DuckDB and would match no row."""
    if node.get("type") != "ARRAY_EXTRACT":
        return
    if constant(node["children"][1]) == "0":
        raise QueryError(
            "element [0] of a list",
            where=shown(text),
            remedy="SQL counts from 1, so z, y, x are [1], [2], [3]",
        )


def is_statement(text: str) -> bool:
    """Return whether a text is one or more SQL statements of any kind, reading or writing."""
    tree = _parsed(text, text)
    return tree["error_type"] == _NO_SELECT if tree["error"] else bool(tree["statements"])


def _parsed(text: str, query: str) -> Node:
    if len(query) > _MOST_CHARACTERS:
        raise QueryError(
            f"{len(text)} characters",
            where=shown(text),
            expected=f"at most {_MOST_CHARACTERS}",
            remedy="select patients by id with cohort[[...]]",
        )
    with session(text, {}) as connection:
        found = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchone()
    assert found is not None
    try:
        tree: Node = json.loads(found[0])
    except RecursionError as error:
        raise QueryError(
            "nested too deeply", where=shown(text), remedy="write it in simpler parts"
        ) from error
    return tree


def _complaint(tree: Node, expected: str) -> str:
    if tree["error_type"] == _NO_SELECT:
        return "not a SELECT; expected one SELECT statement: the tables can be read, not changed"
    return f"{tree['error_message']}; expected {expected}"


def _position(tree: Node, text: str, whole: str) -> int | None:
    """Return where in `text` DuckDB's parser found its mistake in `whole`; None if unknown."""
    if not str(tree.get("position", "")).isdigit():
        return None
    found = int(tree["position"])
    if _counts_bytes():
        before = whole.encode("utf-8", "surrogatepass")[:found]
        found = len(before.decode("utf-8", "replace"))
    return min(max(found - whole.index(text), 0), len(text))


@cache
def _counts_bytes() -> bool:
    """Return whether DuckDB's parser counts positions in bytes: 2 does, 1 counts characters."""
    wrong = "SELECT 'é' WHERE WHERE"
    return int(_parsed(wrong, wrong)["position"]) > wrong.rindex("WHERE")


def nodes(tree: Any) -> Iterator[Node]:
    """Yield every node of a syntax tree."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def tables_of(tree: Node, known: Collection[str], text: str) -> list[str]:
    """Return the `known` tables that a query reads.

    Raises `QueryError` for any other access: another table or catalogue, a function that reads
    files or settings, a statement that writes.
    """
    named = {entry["key"].lower() for n in nodes(tree) for entry in _common_tables(n)}
    reads = set()
    for node in nodes(tree):
        _CHECKS.get(kind_of(node), _check_node)(node, text)
        table = _table_read(node)
        if table in known:
            reads.add(table)
        elif table and table not in named:
            raise QueryError(
                f"no table {table!r} to read", where=shown(text), remedy=_other_table(table, known)
            )
    return sorted(reads)


def _other_table(table: str, known: Collection[str]) -> str:
    """Return which tables there are instead, and that not every dataset has all of them."""
    found = suggestion(table, known)
    made = [name for name in COMPARED if name in found]
    return f"{found} ({' and '.join(made)} if `measure` was run)" if made else found


def kind_of(node: Node) -> str:
    """Return the kind of a node of the syntax tree; "" where it has none."""
    kind = node.get("type")  # a constant's type can be a node: its data type
    return kind if isinstance(kind, str) else ""


def _common_tables(node: Node) -> list[Node]:
    found: list[Node] = node["cte_map"]["map"] if "cte_map" in node else []
    return found


def _table_read(node: Node) -> str:
    """Return the table that a node reads, with its catalogue and schema; "" if it reads none."""
    if kind_of(node) == "BASE_TABLE":
        path = (node["catalog_name"], node["schema_name"], node["table_name"])
        return ".".join(p for p in path if p).lower()
    if kind_of(node) == "SHOW_REF" and not node.get("query"):
        return str(node["table_name"]).strip('"').lower()
    return ""


def _check_node(node: Node, text: str) -> None:
    if kind_of(node).endswith("_NODE") and kind_of(node) not in QUERY_NODES:
        raise QueryError(
            "holds more than SELECT", where=shown(text), remedy="the tables can only be read"
        )


def _check_table_function(node: Node, text: str) -> None:
    name = str(node["function"].get("function_name", "")).lower()
    if name not in _TABLE_FUNCTIONS:
        raise QueryError(
            f"the table function {name!r} is not available",
            where=shown(text),
            remedy=(
                f"only the dataset's tables and {', '.join(sorted(_TABLE_FUNCTIONS))} can be read"
            ),
        )


def _check_function(node: Node, text: str) -> None:
    name = str(node["function_name"]).lower()
    if not node["is_operator"] and name not in _HARMLESS and is_changing(name):
        raise QueryError(
            f"the function {name!r} is not available",
            where=shown(text),
            expected="a function of its arguments only",
        )


def check_parameter(node: Node, text: str) -> None:
    """Raise `QueryError` for a placeholder."""
    raise QueryError("holds a parameter", where=shown(text), remedy="write the value itself")


_CHECKS: dict[str, Callable[[Node, str], None]] = {
    "TABLE_FUNCTION": _check_table_function,
    "FUNCTION": _check_function,
    "VALUE_PARAMETER": check_parameter,
}


def is_changing(function: str) -> bool:
    """Return whether a function's value depends on more than its arguments."""
    return function not in STEADY and function in changing_functions()


@cache
def changing_functions() -> frozenset[str]:
    """Return the functions that depend on more than their arguments in every overload.

    Overloads differ: since DuckDB 2.0.1 `range` of timestamps depends on the session's time zone,
    but `range(3)` does not.
    """
    query = (
        "SELECT function_name FROM duckdb_functions() WHERE stability IS NOT NULL "
        "GROUP BY ALL HAVING NOT bool_or(stability = 'CONSISTENT')"
    )
    with session(query, {}) as connection:
        found = {str(row[0]).lower() for row in connection.execute(query).fetchall()}
    return frozenset(found | _OF_SESSION)
