"""Constraints on doses and volumes of structures, as data: parsed from JSON, judged on a value.

A set is a JSON object with a name and constraints, each with a structure, a metric, a limit and a
citation. Sets that come with the package are in `constraint_sets`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import isnan
from typing import Any

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.histogram import Bounds
from lundprobe_zarr.measures.metrics import Metric, parse_metric
from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.vocabulary.names import STRUCTURES
from lundprobe_zarr.vocabulary.suggest import suggestion, unknown_label

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_LIMIT = re.compile(r"\s*(<=|>=|<|>|≤|≥)\s*([0-9]+(?:\.[0-9]+)?)\s*(%|Gy|cc|)\s*")
_SPELT = {"≤": "<=", "≥": ">="}
_KEYS = ("structure", "metric", "limit", "citation")
_SET_KEYS = ("name", "description", "constraints")


@dataclass(frozen=True)
class Constraint:
    """A limit of a metric of a structure, such as `D98%[%] >= 95 %` of the PTV."""

    structure: str
    metric: Metric
    comparison: str
    limit: float
    citation: str

    @property
    def limit_text(self) -> str:
        """The limit with its comparison and unit."""
        unit = "" if self.metric.unit == "1" else f" {self.metric.unit}"
        return f"{self.comparison} {self.limit:g}{unit}"

    @property
    def is_least(self) -> bool:
        """Whether the metric must not be below the limit, as coverage of a target."""
        return self.comparison in (">", ">=")

    def holds(self, bounds: Bounds) -> bool | None:
        """Whether the metric is within the limit; None where the bounds do not tell."""
        if any(isnan(number) for number in bounds):
            return None
        judged = {_COMPARISONS[self.comparison](b, self.limit) for b in (bounds.low, bounds.high)}
        return judged.pop() if len(judged) == 1 else None


@dataclass(frozen=True)
class ConstraintSet:
    """A named list of constraints."""

    name: str
    description: str
    constraints: tuple[Constraint, ...]


def shipped_sets() -> dict[str, str]:
    """The JSON texts of the sets that come with the package, by name."""
    found = files("lundprobe_zarr.measures").joinpath("constraint_sets").iterdir()
    texts = {f.name.removesuffix(".json"): f for f in found if f.name.endswith(".json")}
    return {name: texts[name].read_text(encoding="utf-8") for name in sorted(texts)}


def constraints_of_text(text: str | bytes, where: str) -> ConstraintSet:
    """Parse the JSON text of a set found at `where`; raise as `constraint_set` does."""
    try:
        document = parse_json(text)
    except ValueError as error:
        raise UsageError(
            f"not readable as JSON ({error})", where=where, expected="a set of constraints"
        ) from error
    return constraint_set(document, where)


def constraint_set(document: object, where: str) -> ConstraintSet:
    """Parse a set of constraints as JSON has it, found at `where`.

    Raises `UsageError` naming the constraint for keys that are missing or unknown, a metric or
    limit that does not parse and a limit in another unit than its metric's, and `UnknownLabelError`
    for an unknown structure.
    """
    if not isinstance(document, Mapping):
        raise UsageError("not a JSON object", where=where, expected=f"one with {_named(_SET_KEYS)}")
    _require_keys(document, _SET_KEYS, ("name", "constraints"), where, None)
    listed = document["constraints"]
    if not isinstance(listed, list) or not listed:
        raise UsageError("no constraints", where=where, expected="a list of one or more")
    parsed = (_constraint(c, where, f"constraint {n}") for n, c in enumerate(listed, 1))
    return ConstraintSet(str(document["name"]), str(document.get("description", "")), tuple(parsed))


def _constraint(document: object, where: str, part: str) -> Constraint:
    if not isinstance(document, Mapping):
        raise UsageError(
            "not a JSON object", where=where, part=part, expected=f"one with {_named(_KEYS)}"
        )
    _require_keys(document, _KEYS, _KEYS, where, part)
    empty = [k for k in _KEYS if not isinstance(document[k], str) or not document[k].strip()]
    if empty:
        raise UsageError(
            f"{empty[0]} is {document[empty[0]]!r}", where=where, part=part, expected="a text"
        )
    structure = document["structure"]
    if structure not in STRUCTURES:
        error = unknown_label("structure", structure, STRUCTURES)
        error.where, error.part = where, part
        raise error
    try:
        metric = parse_metric(document["metric"])
        comparison, limit = _limit(document["limit"], metric)
    except UsageError as error:
        error.where, error.part = where, part
        raise
    return Constraint(structure, metric, comparison, limit, document["citation"])


def _limit(text: str, metric: Metric) -> tuple[str, float]:
    """Return the comparison and number of a limit, whose unit must be that of its metric."""
    unit = "" if metric.unit == "1" else metric.unit
    found = _LIMIT.fullmatch(text)
    if found is None:
        raise UsageError(
            f"limit {text!r}", expected=f"<=, >=, < or >, a number and a unit: '<= 15 {unit}'"
        )
    if found[3] != unit:
        raise UsageError(
            f"limit {text!r} of {metric.text}, in {found[3] or 'no unit'}",
            expected=f"a limit in {unit or 'no unit'}, as the metric is",
            remedy="give the limit in that unit, or name another in brackets behind the metric",
        )
    return _SPELT.get(found[1], found[1]), float(found[2])


def _require_keys(
    document: Mapping[str, Any],
    known: tuple[str, ...],
    needed: tuple[str, ...],
    where: str,
    part: str | None,
) -> None:
    for key in document:
        if key not in known:
            raise UsageError(
                f"unknown key {key!r}",
                where=where,
                part=part,
                expected=_named(known),
                remedy=suggestion(str(key), known),
            )
    for key in needed:
        if key not in document:
            raise UsageError(f"no {key!r}", where=where, part=part, expected=_named(needed))


def _named(keys: tuple[str, ...]) -> str:
    return ", ".join(keys)
