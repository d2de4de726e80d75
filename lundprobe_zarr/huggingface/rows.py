"""Rows of each configuration by patient: table values and references to voxels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.huggingface.locations import key_of
from lundprobe_zarr.huggingface.options import TABLE_CONFIGS
from lundprobe_zarr.huggingface.references import Reference
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.vocabulary.suggest import suggestion

#: A row's values by column, and its references by column.
RawRow = tuple[dict[str, Any], dict[str, Reference]]
Place = tuple[int, int, int]
#: Operators that pyarrow accepts in tuples.
_OPERATORS = ("=", "==", "!=", "<", ">", "<=", ">=", "in", "not in")
_WHO = ("patient_id", "part", "protocol")


@dataclass(frozen=True)
class Wanted:
    """The voxels of rows: grid, modalities and structures."""

    grid: str
    modalities: tuple[str, ...]
    structures: tuple[str, ...]


class RowSource:
    """Rows of one configuration of a cohort; pickles with the cohort."""

    def __init__(
        self, cohort: Cohort, config: str, wanted: Wanted, filters: Any, columns: Sequence[str]
    ) -> None:
        self.cohort = cohort
        self._config = config
        self._wanted = wanted
        self._columns = frozenset(columns)
        self._table = config if config in (*TABLE_CONFIGS, "slices") else "patients"
        self._filter = filter_of(filters, self._table)

    @property
    def chosen(self) -> Cohort:
        """The patients that match filters on patients; all for filters on other rows."""
        if self._filter is None or self._table != "patients":
            return self.cohort
        table = self.cohort.dataset.table("patients").filter(self._filter)
        ids = set(table.column("patient_id").to_pylist())
        return self.cohort[[i for i in self.cohort.ids if i in ids]]

    def table(self, patient_id: str) -> pa.Table:
        """Return a patient's filtered rows of the configuration's table."""
        table = self.cohort.dataset.patient_rows(self._table, patient_id)
        return table if self._filter is None else table.filter(self._filter)

    def of_patient(self, patient_id: str) -> Iterator[RawRow]:
        """Yield a patient's rows, in order."""
        for record in self.table(patient_id).to_pylist():
            yield self._row(record)

    def _row(self, record: dict[str, Any]) -> RawRow:
        if self._config in TABLE_CONFIGS:
            return record, {}
        values, patient = dict(record), record
        if self._config == "slices":
            patient = self.cohort.dataset.patient(record["patient_id"])
        else:
            values = {name: record[name] for name in _WHO} | self._grid(record)
        return values | self._flags(patient), self._references(patient, record)

    def about(self, patient_id: str) -> dict[str, Any]:
        """Return a row's columns about the patient: ids, grid, present structures."""
        patient = self.cohort.dataset.patient(patient_id)
        who = {name: patient[name] for name in _WHO}
        return who | self._grid(patient) | self._flags(patient)

    def _grid(self, patient: Mapping[str, Any]) -> dict[str, Any]:
        grid = self._wanted.grid
        return {name: patient[f"{grid}_{name}"] for name in ("shape", "spacing_mm", "origin_mm")}

    def _flags(self, patient: Mapping[str, Any]) -> dict[str, Any]:
        if not self._columns & {"present", "structures"}:
            return {}
        structures = self._wanted.structures
        present = [self._present(patient, s) for s in structures]
        return {"structures": list(structures), "present": present}

    def _present(self, patient: Mapping[str, Any], structure: str) -> bool:
        if self._wanted.grid == "mri":
            return not patient[f"missing_{structure}"]
        source = self.cohort.dataset
        there = source.segmentation(self._wanted.grid, "clinical", structure, [])[0]
        return bool(there[source.row_of[patient["patient_id"]]].as_py())

    def _references(
        self, patient: Mapping[str, Any], record: Mapping[str, Any]
    ) -> dict[str, Reference]:
        shape = patient[f"{self._wanted.grid}_shape"]
        if shape is None:  # a patient without a planning grid
            return {}
        z, y, x = shape
        if self._config != "slices":
            return self.in_box(patient["patient_id"], (0, 0, 0), (z, y, x))
        first = record["z_index"]
        box = (first, 0, 0), (first + 1, y, x)
        return self.in_box(patient["patient_id"], *box, axial=True)

    def in_box(
        self, patient_id: str, start: Place, stop: Place, **how: Any
    ) -> dict[str, Reference]:
        """Return references by column to a box of a patient; `how` as in `Reference`."""
        grid, wanted = self._wanted.grid, self._wanted
        arrays: dict[str, tuple[str, tuple[str, ...] | None]] = {
            "image": (f"{grid}/image", wanted.modalities),
            "mask": (f"{grid}/clinical/mask", wanted.structures),
            "dose": (f"{grid}/dose", None),
        }
        key = key_of(self.cohort.location)
        return {
            name: Reference(*key, patient_id, array, labels, start, stop, **how)
            for name, (array, labels) in arrays.items()
            if name in self._columns
        }


def filter_of(filters: Any, table: str) -> pc.Expression | None:
    """Return filters of a table's rows as a pyarrow expression.

    `filters` are as in `pyarrow.parquet`: an expression, a list of tuples (column, operator,
    value) that all must match, or a list of such lists of which one must match. Raise `UsageError`
    for invalid filters or an unknown column.
    """
    if filters is None:
        return None
    try:
        expression = filters
        if not isinstance(filters, pc.Expression):
            expression = pq.filters_to_expression(filters)
        TABLES[table].schema.empty_table().filter(expression)
    except (pa.ArrowException, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"filters={filters!r}: {_mistake(filters, TABLES[table].schema)}",
            expected=(
                "tuples such as [('protocol', '==', 'newAcq')] of columns of the "
                f"table {table}: {', '.join(TABLES[table].schema.names)}"
            ),
        ) from error
    return expression


def _mistake(filters: Any, schema: pa.Schema) -> str:
    """Return what is wrong with filters that pyarrow rejected."""
    if isinstance(filters, pc.Expression):
        return "the expression has an unknown column or compares incompatible types"
    for one in _tuples(filters):
        if not isinstance(one, tuple) or len(one) != 3:
            return f"{one!r} is not a tuple (column, operator, value)"
        column, operator, value = one
        if column not in schema.names:
            return f"no column {column!r}; {suggestion(str(column), schema.names)}"
        if operator not in _OPERATORS:
            return f"no operator {operator!r}; operators are {', '.join(_OPERATORS)}"
        try:
            schema.empty_table().filter(pq.filters_to_expression([one]))
        except (pa.ArrowException, ValueError, TypeError):
            return f"{column} is {schema.field(column).type}: no {operator!r} with {value!r}"
    return "not filters"


def _tuples(filters: Any) -> Iterator[Any]:
    """Yield everything that should be a tuple (column, operator, value)."""
    for some in filters if isinstance(filters, (list, tuple)) else [filters]:
        yield from some if isinstance(some, list) else [some]
