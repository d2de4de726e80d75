"""Describe the columns and fields of a predicate, with a valid example, for messages."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from lundprobe_zarr.schema.tables import PATIENTS, STRUCTURES_TABLE

_KINDS = {c.name: c.type for c in (*STRUCTURES_TABLE.columns, *PATIENTS.columns)}
#: The value in a column's example, by the column's name or by its ending.
_TEXTS = {"part": "extended", "protocol": "newAcq", "patient_id": "newAcq_3fa9c0d211b7e845"}
_NUMBERS = {"_gy": "40", "_cc": "60", "_pct": "95", "_bytes": "100000000", "voxels": "1000"}
#: Most names that a message explains.
_EXPLAINED = 3


def explained(names: Iterable[str]) -> str:
    """Return the end of a message: the type of each column, structure or field and an example."""
    first = list(dict.fromkeys(names))[:_EXPLAINED]
    return "; ".join(f"{name} is {_what(name)}, e.g. {example(name)}" for name in first)


def example(name: str) -> str:
    """Return a valid predicate for a column (`protocol`) or a field (`Rectum.d95_gy`)."""
    column = name.rpartition(".")[2]
    kind = _KINDS.get(column)
    if kind is None:
        return f"{name}.volume_cc > 60"
    if pa.types.is_fixed_size_list(kind):
        return f"{name}[1] > {_number(column)}"
    if pa.types.is_list(kind):
        return f"list_contains({name}, 'PenileBulb')" if "struct" in name else f"len({name}) > 0"
    if pa.types.is_boolean(kind):
        return f"NOT {name}"
    if pa.types.is_string(kind):
        return f"{name} = '{_TEXTS.get(column, 'text')}'"
    return f"{name} > {_number(column)}"


def _number(column: str) -> str:
    return next((n for end, n in _NUMBERS.items() if column.endswith(end)), "2")


def _what(name: str) -> str:
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None:
        return f"a structure (its name, as a text, is '{name.rpartition('.')[2]}')"
    if pa.types.is_fixed_size_list(kind):
        return "three numbers (z, y, x)"
    if pa.types.is_list(kind):
        return "a list of texts"
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_string(kind):
        return "text"
    return "a whole number" if pa.types.is_integer(kind) else "a number"
