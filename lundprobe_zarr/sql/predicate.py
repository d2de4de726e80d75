"""Predicates: SQL over the patients columns and named structures, e.g. `Rectum.volume_cc > 60`.

A structure is a column of type STRUCT. Its fields are the measured columns of the structures table,
so DuckDB itself resolves `Rectum.volume_cc`. Only the mentioned columns are read. A structure that
a patient lacks is NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lundprobe_zarr.dataset.arrow import to_arrow, to_numpy
from lundprobe_zarr.dataset.dataset import SEGMENTATION_KEYS, Dataset, Rows
from lundprobe_zarr.errors import QueryError, QueryLimitError, UsageError
from lundprobe_zarr.schema.tables import PATIENTS, STRUCTURES_TABLE, TABLES
from lundprobe_zarr.sql.columns import explained
from lundprobe_zarr.sql.condition import CONDITION, parse_condition
from lundprobe_zarr.sql.messages import kind_in_words, unquoted
from lundprobe_zarr.sql.session import (
    Node,
    execute,
    is_bounded,
    is_statement,
    kind_of,
    nodes,
    shown,
)
from lundprobe_zarr.sql.worker import Limits, SqlWorker, limits, worker
from lundprobe_zarr.vocabulary.names import STRUCTURES
from lundprobe_zarr.vocabulary.suggest import nearest, suggestion

#: Prefix of a structure -> grid and source of the segmentation.
SEGMENTATIONS: dict[str, tuple[str, str]] = {
    "": ("mri", "clinical"),
    "mri": ("mri", "clinical"),
    "sct": ("sct", "clinical"),
    "nnunet": ("mri", "nnunet"),
}
_COLUMNS = {c.name.lower(): c.name for c in PATIENTS.columns}
_STRUCTURES = {s.lower(): s for s in STRUCTURES}
_WHO = {*SEGMENTATION_KEYS, "part", "protocol", "fold", "step", "observer"}
#: Columns of the structures table that describe a segmentation: the fields of a structure.
FIELDS: tuple[str, ...] = tuple(c.name for c in STRUCTURES_TABLE.columns if c.name not in _WHO)
#: (grid, source, structure, fields) -> presence, then each field, one value per patient.
SegmentationReader = Callable[[str, str, str, list[str]], list[Any]]
_ROW = "row of the patients table"
#: Tables, and columns with several values per patient, which a predicate cannot use.
_ELSEWHERE = {*TABLES, "fold", "step", "observer", "observers", "structure", "grid", "source"}
#: Tests of presence. Any field of the structure is enough for them.
_NULL_TESTS = ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL")
_BOUNDS = limits()


class Mention(NamedTuple):
    """A structure's field in a predicate. The prefix "" means the clinical segmentation."""

    prefix: str
    structure: str
    field: str


@dataclass(frozen=True)
class Predicate:
    """A valid predicate and the columns that it needs.

    `names` are the columns, structures and fields that it compares. If it is `bounded`, its cost is
    proportional to the number of patients. Otherwise `by` runs it within `bounds`, by default this
    process's worker.
    """

    text: str
    columns: tuple[str, ...]
    mentions: tuple[Mention, ...]
    names: tuple[str, ...]
    bounded: bool
    bounds: Limits
    by: SqlWorker | None = None

    def choose(self, dataset: Dataset, among: Rows) -> Rows:
        """Return those of the patients (row numbers) for whom it is true.

        Raises `QueryError` if it fails on a patient's values, such as an impossible cast.
        """
        if self.mentions:  # reads all needed columns of the structures table at once
            dataset.segmentations({m.field for m in self.mentions})
        patients = dataset.columns("patients", self.columns)
        patients = patients.append_column(_ROW, to_arrow(np.arange(patients.num_rows)))
        patients = self._flat(patients, dataset.segmentation)
        if len(among) < patients.num_rows:
            patients = patients.take(to_arrow(among))
        query = f'SELECT "{_ROW}" FROM patients WHERE (\n{self.text}\n)'
        found = to_numpy(self._run([query], patients).column(0).combine_chunks(), null=-1)
        return np.sort(np.asarray(found, np.int64))

    def check(self, strict: bool) -> None:
        """Run it on a patient without values; raise `QueryError` unless it is a predicate.

        If `strict`, an impossible cast of a constant fails here, otherwise only in `choose`.
        """
        fields = [pa.nulls(1, f.type) for f in PATIENTS.schema]
        blank = pa.Table.from_arrays(fields, PATIENTS.schema.names)
        blank = self._flat(blank.append_column(_ROW, pa.nulls(1, pa.int64())), _nobody)
        query = f"SELECT (\n{self.text}\n) FROM patients"  # a line break ends a trailing comment
        describe = f"DESCRIBE {query} WHERE (\n{self.text}\n)"
        described = self._run([query, describe] if strict else [describe], blank)
        kind = described.column("column_type")[0].as_py()
        if kind != "BOOLEAN":
            raise QueryError(
                f"is {kind_in_words(kind)}, not true or false",
                where=shown(self.text),
                expected="a condition",
                remedy=self._remedy,
            )

    def _run(self, statements: list[str], patients: pa.Table) -> pa.Table:
        """Run statements over these patients: in this process if the cost is bounded."""
        steps, tables = [self._preparation(), *statements], {"chosen": patients}
        if self.bounded:
            return execute(self.text, steps, tables, self._remedy)
        return (self.by or worker()).run(self.text, steps, tables, self.bounds, self._remedy)

    @property
    def _remedy(self) -> str:
        """Descriptions and valid examples of the names that it compares."""
        return explained(self.names) or CONDITION

    def _flat(self, patients: pa.Table, read: SegmentationReader) -> pa.Table:
        """Add columns for every mentioned structure: its presence and the mentioned fields."""
        for (prefix, structure), mentions in groupby(self.mentions, lambda m: m[:2]):
            fields = [m.field for m in mentions]
            values = read(*SEGMENTATIONS[prefix], structure, fields)
            for field, value in zip(["", *fields], values, strict=True):
                patients = patients.append_column(f"{prefix} {structure} {field}", value)
        return patients

    def _preparation(self) -> str:
        """Return SQL that packs these columns into one STRUCT per structure.

        Arrow structs are not used: DuckDB before 2.0 reads wrong rows from those with nulls or an
        offset, and 2.0 refuses some of them.
        """
        columns = [*self.columns, f'"{_ROW}"']
        for prefix, of_prefix in groupby(self.mentions, lambda m: m.prefix):
            packed = {s: _pack(list(ms)) for s, ms in groupby(of_prefix, lambda m: m.structure)}
            if prefix:
                fields = ", ".join(f"{name} := {value}" for name, value in packed.items())
                packed = {prefix: f"struct_pack({fields})"}
            columns += [f"{value} AS {name}" for name, value in packed.items()]
        return f"CREATE TEMP TABLE patients AS SELECT {', '.join(columns)} FROM chosen"


def _pack(mentions: list[Mention]) -> str:
    name = f"{mentions[0].prefix} {mentions[0].structure} "
    fields = (f'{m.field} := "{name}{m.field}"' for m in mentions)
    return f'CASE WHEN "{name}" THEN struct_pack({", ".join(fields)}) END'


def _nobody(grid: str, source: str, structure: str, fields: list[str]) -> list[Any]:
    schema = STRUCTURES_TABLE.schema
    return [pa.nulls(1, kind) for kind in (pa.bool_(), *(schema.field(f).type for f in fields))]


def parse_predicate(text: str, bounds: Limits = _BOUNDS, by: SqlWorker | None = None) -> Predicate:
    """Parse a predicate and check it against the schema, without reading data.

    `by` runs it if its cost is not bounded by the number of patients.
    Raises `QueryError` if it is invalid, with the mistake and the nearest known names.
    """
    if not isinstance(text, str):
        raise UsageError(
            f"the predicate is {type(text).__name__}",
            expected="SQL text such as \"protocol = 'newAcq'\"",
            remedy="select patients by id with cohort[[...]]",
        )
    try:
        condition = parse_condition(text)
        predicate = replace(_resolve(condition, text, bounds), by=by)
        predicate.check(all(_passes_nulls_on(n) for n in nodes(condition)))
    except QueryLimitError:
        raise
    except QueryError as error:
        if is_statement(text):  # `ATTACH 'x.db'` also parses as a condition
            raise QueryError(
                "is a whole statement",
                where=shown(text),
                expected="a condition such as n_fiducials = 3",
                remedy="run a SELECT with cohort.sql(...); nothing can be written or attached",
            ) from error
        raise
    return predicate


def _passes_nulls_on(node: Node) -> bool:
    """Return whether a node is NULL for NULL inputs, so that only its constants can fail then."""
    if node.get("class") == "FUNCTION":
        return bool(node["is_operator"])
    return node.get("class") != "CASE" and node.get("type") != "OPERATOR_COALESCE"


def _resolve(condition: Any, text: str, bounds: Limits) -> Predicate:
    columns, mentions, compared = {"patient_id"}, set[Mention](), set[str]()
    tests = [n for n in nodes(condition) if kind_of(n) in _NULL_TESTS]
    tested = {id(child) for n in tests for child in n["children"]}
    for node in _column_references(condition):
        names = node["column_names"]
        qualified = names[0].lower() == "patients" and len(names) > 1
        path = names[1:] if qualified else names
        if path[0].lower() in _COLUMNS:
            columns.add(_COLUMNS[path[0].lower()])
            compared.add(_COLUMNS[path[0].lower()])
        else:
            found = _mentioned(path, text, FIELDS[:1] if id(node) in tested else FIELDS)
            mentions |= found
            compared |= set() if id(node) in tested else {_name(found)}
    if any(node.get("class") == "STAR" for node in nodes(condition)):  # COLUMNS('missing_.*')
        columns |= set(_COLUMNS.values())
    in_order = sorted(compared, key=lambda name: text.lower().find(name.lower()))
    return Predicate(
        text,
        tuple(sorted(columns)),
        tuple(sorted(mentions)),
        tuple(in_order),
        is_bounded(condition),
        bounds,
    )


def _name(mentions: set[Mention]) -> str:
    """Return a name for these mentions of a structure: with the field if there is only one."""
    prefix, structure, field = min(mentions)
    path = (prefix, structure, field if len(mentions) == 1 else "")
    return ".".join(p for p in path if p)


def _mentioned(names: list[str], text: str, whole: tuple[str, ...]) -> set[Mention]:
    """Return the mentions of a name that is no column; `whole` are a bare structure's fields."""
    prefix = names[0].lower() if names[0].lower() in SEGMENTATIONS else ""
    path = names[1:] if prefix else names
    if not path or path[0].lower() not in _STRUCTURES:
        raise QueryError(str(_unknown(prefix, path, text)), where=shown(text))
    structure = _STRUCTURES[path[0].lower()]
    if len(path) == 1:
        return {Mention(prefix, structure, f) for f in whole}
    fields = [f for f in FIELDS if f == path[1].lower()]
    if not fields:
        raise QueryError(
            f"{structure} has no {path[1]!r}", where=shown(text), remedy=suggestion(path[1], FIELDS)
        )
    return {Mention(prefix, structure, fields[0])}


def _unknown(prefix: str, path: list[str], text: str) -> str:
    """Return the message for a name that is neither a column nor a structure."""
    name = path[0] if path else ""
    if prefix and not name:
        return f"{prefix!r} needs a structure: write e.g. {prefix}.Rectum.volume_cc"
    if prefix:
        return (
            f"no structure {name!r} after {prefix}; {suggestion(name, STRUCTURES)}; write e.g. "
            f"{prefix}.Rectum.volume_cc"
        )
    if name.lower() in FIELDS:
        return f"{name!r} is a structure's field: write e.g. Rectum.{name.lower()}"
    if name.lower() in _ELSEWHERE:
        return f"{name!r} has no single value per patient; use cohort.sql(...), then select by id"
    if found := unquoted(name):
        return found
    close = nearest(name, STRUCTURES if len(path) > 1 else [*_COLUMNS.values(), *STRUCTURES])
    if f'"{name}"' in text and not close:
        return f"no column {name!r}; a text takes single quotes: '{name}'"
    if len(path) > 1:
        return f"no structure {name!r}; {suggestion(name, STRUCTURES)}"
    return f"no column {name!r}; {suggestion(name, [*_COLUMNS.values(), *STRUCTURES])}"


def _column_references(tree: Any) -> Iterator[Node]:
    """Yield every reference to a column, without parameters of lambdas."""
    stack: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
    while stack:
        item, bound = stack.pop()
        if isinstance(item, list):
            stack.extend((i, bound) for i in item)
        elif isinstance(item, dict):
            if item.get("class") == "LAMBDA":
                bound |= {n["column_names"][0] for n in nodes(item["lhs"]) if "column_names" in n}
            if item.get("class") == "COLUMN_REF" and item["column_names"][0] not in bound:
                yield item
            stack.extend((value, bound) for value in item.values())
