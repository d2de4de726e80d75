"""Check constants that are compared with columns of known values.

A misspelt constant would silently select no patient, or all. Names are resolved as in SQL,
through aliases, subqueries and common table expressions. Names that may mean something else are not
checked; nor are LIKE, `<` and expressions. An end of BETWEEN is, as far as it is a value misspelt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

import pyarrow as pa

from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.schema.tables import TABLES, VIEWS, Column
from lundprobe_zarr.sql.session import QUERY_NODES, Node, constant, kind_of, nodes, shown
from lundprobe_zarr.vocabulary.files import expected_files
from lundprobe_zarr.vocabulary.names import (
    FOLDS,
    OBSERVERS,
    PARTS,
    PATIENT_ID_FORM,
    PROTOCOLS,
    STEPS,
    STRUCTURES,
    is_patient_id,
)
from lundprobe_zarr.vocabulary.suggest import nearest


class Domain(NamedTuple):
    """The possible values of a column, or of each element of a list column.

    Of `patient_id`, which has no `values`, the form is known.
    """

    column: str
    values: tuple[str, ...]
    is_list: bool

    def holds(self, value: str) -> bool:
        """Return whether the column may have a value."""
        return value in self.values if self.values else is_patient_id(value)

    def wrong(self, value: str, text: str) -> QueryError:
        """Return the error for a value that it cannot have, in the SQL `text`."""
        close = nearest(value, self.values)
        near = f"nearest: {', '.join(close)}; " if close else ""
        return QueryError(
            f"no {value!r} in {self.column}",
            where=shown(text),
            remedy=f"{near}expected one of {', '.join(self.values)}"
            if self.values
            else f"expected {PATIENT_ID_FORM}",
        )


#: Columns of a relation; None for columns without known values.
Columns = Mapping[str, Domain | None]

#: What every file of a patient becomes.
_FILES = [file for part in PARTS for file in expected_files(part).values()]
_VALUES: dict[str, tuple[str, ...]] = {
    "patient_id": (),
    "part": PARTS,
    "protocol": PROTOCOLS,
    "grid": ("mri", "sct"),
    "source": ("clinical", "nnunet", "nnunet_fold", "observer"),
    "structure": STRUCTURES,
    "fold": tuple(map(str, FOLDS)),
    "step": tuple(map(str, STEPS)),
    "observer": OBSERVERS,
    "group": tuple(sorted({f.group for f in _FILES})),
    "variable": tuple(sorted({f.variable for f in _FILES})),
    "missing_structures": STRUCTURES,
    "multi_component_structures": STRUCTURES,
}
_EQUALITIES = {
    "COMPARE_EQUAL",
    "COMPARE_NOTEQUAL",
    "COMPARE_IN",
    "COMPARE_NOT_IN",
    "COMPARE_DISTINCT_FROM",
    "COMPARE_NOT_DISTINCT_FROM",
}
_MEMBERSHIPS = {"contains", "list_contains", "array_contains", "list_has", "array_has"}
#: Functions and operators of two lists.
_OVERLAPS = {
    *("list_has_any", "array_has_any", "&&"),
    *("list_has_all", "array_has_all", "@>", "<@"),
}
#: Similarity (0 to 1, `difflib`) from which an end of a range is taken for a value misspelt.
_MISSPELT = 0.8


def _domain(column: Column) -> Domain | None:
    values = _VALUES.get(column.name)
    return None if values is None else Domain(column.name, values, pa.types.is_list(column.type))


_TABLES: dict[str, Columns] = {
    name: {c.name: _domain(c) for c in table.columns} for name, table in TABLES.items()
}
_TABLES |= {name: _TABLES[view.table] for name, view in VIEWS.items()}


@dataclass
class _Scope:
    """A scope of names: relations by alias (None: unknown columns), and names not to check."""

    outer: _Scope | None = None
    relations: dict[str, Columns | None] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)

    def find(self, path: Sequence[str]) -> Domain | None:
        """Return the known values of a column; None if the name may mean something else."""
        if path[0] in self.hidden:
            return None
        if len(path) == 1:
            homes = [c for c in self.relations.values() if c is None or path[0] in c]
            found = {None if c is None else c[path[0]] for c in homes}
            if homes:
                return found.pop() if len(found) == 1 else None
        elif path[0] in self.relations:
            columns = self.relations[path[0]]
            return columns.get(path[1]) if columns and len(path) == 2 else None
        return self.outer.find(path) if self.outer else None

    def add(self, alias: str, columns: Columns | None) -> None:
        """Add a relation. If two have the same alias, their columns count as unknown."""
        self.relations[alias] = None if alias in self.relations else columns


def check_query_values(tree: Node, text: str) -> None:
    """Raise `QueryError` for a constant in a SELECT that its column cannot hold."""
    _Walk(text).query(tree, {}, None)


def check_condition_values(condition: Any, text: str, table: str) -> None:
    """Raise `QueryError` for a constant in a table's condition that its column cannot hold."""
    _Walk(text).expressions(condition, _Scope(relations={table: _TABLES.get(table)}), {})


class _Walk:
    """A walk through a syntax tree with the scope of names at each node."""

    def __init__(self, text: str) -> None:
        self._text = text

    def query(
        self, node: Node, common: Mapping[str, Columns | None], outer: _Scope | None
    ) -> Columns | None:
        """Check a query and return the columns of its result; None if unknown."""
        common = dict(common)
        for entry in node.get("cte_map", {}).get("map", ()):
            name, value = entry["key"].lower(), entry["value"]
            common[name] = None  # its meaning within itself
            inner = value.get("query_node") or value["query"]["node"]
            columns = self.query(inner, common, outer)
            common[name] = None if value.get("aliases") else columns
        if node["type"] == "SELECT_NODE":
            return self._select(node, common, outer)
        if node["type"] == "SET_OPERATION_NODE":
            sides = node.get("children") or [node["left"], node["right"]]
            found = [self.query(side, common, outer) for side in sides]
            return found[0] if all(columns == found[0] for columns in found) else None
        rest = {k: v for k, v in node.items() if k != "cte_map"}
        self.expressions(list(rest.values()), _Scope(relations={"": None}), common)
        return None

    def _select(
        self, node: Node, common: Mapping[str, Columns | None], outer: _Scope | None
    ) -> Columns | None:
        scope = _Scope(outer)
        self._relation(node["from_table"], scope, common)
        items = node["select_list"]
        computed = [i for i in items if i.get("alias") and "column_names" not in i]
        result = _result(items, scope)
        scope.hidden |= {i["alias"].lower() for i in computed}
        scope.hidden |= {
            i["alias"].lower()
            for i in items
            if i.get("alias") and "column_names" in i and i["column_names"][-1] != i["alias"]
        }
        rest = [v for k, v in node.items() if k not in ("from_table", "cte_map")]
        self.expressions(rest, scope, common)
        return result

    def _relation(self, node: Node, scope: _Scope, common: Mapping[str, Columns | None]) -> None:
        kind, alias = node["type"], (node.get("alias") or "").lower()
        if kind == "JOIN":
            self._relation(node["left"], scope, common)
            self._relation(node["right"], scope, common)
            self.expressions(node.get("condition"), scope, common)
        elif kind == "BASE_TABLE":
            name = node["table_name"].lower()
            columns = common[name] if name in common else _TABLES.get(name)
            scope.add(alias or name, None if node.get("column_name_alias") else columns)
        elif kind == "SUBQUERY":
            columns = self.query(node["subquery"]["node"], common, scope)
            scope.add(alias, None if node.get("column_name_alias") else columns)
        elif kind != "EMPTY":
            self.expressions(list(node.values()), _Scope(relations={"": None}), common)
            scope.add(alias, None)

    def expressions(self, item: Any, scope: _Scope, common: Mapping[str, Columns | None]) -> None:
        """Check every comparison in an expression, or in several."""
        stack = [(item, scope)]
        while stack:
            item, scope = stack.pop()
            if isinstance(item, list):
                stack.extend((one, scope) for one in item)
            if not isinstance(item, dict):
                continue
            if kind_of(item) in QUERY_NODES:
                self.query(item, common, scope)
                continue
            if item.get("class") == "LAMBDA":
                names = {n["column_names"][0] for n in nodes(item["lhs"]) if "column_names" in n}
                scope = _Scope(scope, hidden={name.lower() for name in names})
            for name, value in _compared(item):
                self._check(scope.find([part.lower() for part in name["column_names"]]), value)
            stack.extend((value, scope) for value in item.values())

    def _check(self, domain: Domain | None, given: Node) -> None:
        value = constant(given)
        if domain is None or value is None or bool(given.get("of_list")) != domain.is_list:
            return
        # 1.0 equals 1, and DuckDB itself refuses non-numbers.
        if domain.values and domain.values[0].isdigit():
            value = str(int(value)) if value.isascii() and value.isdigit() else domain.values[0]
        is_end = given.get("of_range") and not get_close_matches(value, domain.values, 1, _MISSPELT)
        if not is_end and not domain.holds(value):
            raise domain.wrong(value, self._text)


def _result(items: Sequence[Node], scope: _Scope) -> Columns | None:
    """Return the columns of a SELECT's result; None if unknown."""
    found: dict[str, Domain | None] = {}
    for item in items:
        if item.get("class") == "STAR":
            whole = ("replace_list", "rename_list", "columns", "expr")
            alias = (item.get("relation_name") or "").lower()
            of = [scope.relations.get(alias)] if alias else list(scope.relations.values())
            if any(item.get(key) for key in whole) or any(columns is None for columns in of):
                return None
            given = [pair for columns in of for pair in (columns or {}).items()]
        elif "column_names" in item:
            path = [part.lower() for part in item["column_names"]]
            given = [((item.get("alias") or path[-1]).lower(), scope.find(path))]
        else:
            given = [((item.get("alias") or "").lower(), None)]
        for name, domain in given:
            found[name] = domain if found.get(name, domain) == domain else None
    return found


def _compared(node: Node) -> Iterator[tuple[Node, Node]]:
    """Yield pairs of a column and a constant that a node compares for equality."""
    if kind_of(node) in _EQUALITIES:
        operands = [node["left"], node["right"]] if "left" in node else node["children"]
        for other in operands[1:]:
            for pair in zip(_parts(operands[0]), _parts(other), strict=False):
                yield from _ordered(*pair)
    elif kind_of(node) == "COMPARE_BETWEEN":
        for end in (node["lower"], node["upper"]):
            yield from _ordered(node["input"], end | {"of_range": True})
    elif node.get("subquery_type") == "ANY" and node.get("comparison_type") in _EQUALITIES:
        for value in _listed(node["subquery"]["node"]):
            yield from _ordered(node["child"], value)
    elif node.get("function_name") in _OVERLAPS and len(arguments := _arguments(node)) == 2:
        for one, other in (arguments, arguments[::-1]):
            if "column_names" in one and other.get("function_name") == "list_value":
                yield from ((one, value | {"of_list": True}) for value in _arguments(other))
    elif node.get("function_name") in _MEMBERSHIPS and len(arguments := _arguments(node)) == 2:
        among, wanted = arguments
        if among.get("function_name") == "list_value":
            for value in _arguments(among):
                yield from _ordered(wanted, value)
        elif "column_names" in among:
            yield among, wanted | {"of_list": True}


def _listed(query: Node) -> list[Node]:
    """Return the items of `= ANY([...])`, of which DuckDB makes a subquery; none of any other."""
    items = query.get("select_list") or []
    if len(items) != 1 or query["from_table"]["type"] != "EMPTY":
        return []
    found = _arguments(items[0]) if items[0].get("function_name") == "unnest" else []
    is_list = len(found) == 1 and found[0].get("function_name") == "list_value"
    return _arguments(found[0]) if is_list else []


def _ordered(one: Node, other: Node) -> Iterator[tuple[Node, Node]]:
    if "column_names" in one:
        yield one, other
    elif "column_names" in other:
        yield other, one


def _parts(node: Node) -> list[Node]:
    """Return the fields of a row, or the node itself if it is no row."""
    return _arguments(node) if node.get("function_name") == "row" else [node]


def _arguments(node: Node) -> list[Node]:
    """Return the arguments of a function. DuckDB before 2.0 has another key for them."""
    given = [argument["expression"] for argument in node.get("arguments", ())]
    return given or list(node.get("children", ()))
