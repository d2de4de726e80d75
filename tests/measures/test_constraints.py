"""Metrics and constraints that do not parse, each named with the nearest right one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.measures.constraints import (
    constraint_set,
    constraints_of_text,
    shipped_sets,
)
from lundprobe_zarr.measures.histogram import Bounds
from lundprobe_zarr.measures.metrics import parse_metric, parse_metrics

GOOD = {
    "structure": "Rectum",
    "metric": "V38.43Gy[%]",
    "limit": "<= 15 %",
    "citation": "our protocol, section 4",
}


def one(**changes: Any) -> dict[str, Any]:
    return {"name": "ours", "constraints": [GOOD, GOOD | changes]}


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("D98", "D98%, D98cc"),
        ("d98%", "D98%"),
        ("D 0.03 cm3", "D0.03cc"),
        ("D2ml", "D2cc"),
        ("Dmean", "mean"),
        ("maximum", "max"),
        ("median", "D50%"),
        ("V38.43", "V38.43Gy, V38.43%"),
        ("V38,43Gy", "V38.43Gy"),
        ("V20Gy[cm³]", "V20Gy[cc]"),
        ("V20Gy[Gy]", "V20Gy"),
        ("hi", "HI"),
        ("Paddick index", "CI"),
        ("CI95%", "CI[95%]"),
    ],
)
def test_a_metric_that_does_not_parse_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_metric(text)
    assert raised.value.remedy == f"nearest: {nearest}"
    assert repr(text) in raised.value.finding
    for right in nearest.split(", "):
        assert parse_metric(right).text == right


@pytest.mark.parametrize("text", ["gEUD", "", "TCP", "D98%[cc]?", 3, "D1e3%", "D-1%", "V٣Gy"])
def test_what_is_no_metric_at_all_says_what_there_is(text: Any) -> None:
    with pytest.raises(UsageError, match="expected Dx% or Dxcc"):
        parse_metric(text)


@pytest.mark.parametrize("text", ["D0%", "D0cc", "D100.1%", "CI[0Gy]"])
def test_amounts_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_metric(text)


def test_several_metrics_are_one_each() -> None:
    assert [m.text for m in parse_metrics(["D98%", "mean", "D98%"])] == ["D98%", "mean"]
    assert [m.text for m in parse_metrics("HI")] == ["HI"]


def test_a_set_parses() -> None:
    (constraint, _) = constraint_set(one(limit="≥ 95 %"), "ours.json").constraints
    assert (constraint.structure, constraint.limit_text) == ("Rectum", "<= 15 %")
    assert not constraint.is_least
    (_, constraint) = constraint_set(one(limit="≥ 95 %"), "ours.json").constraints
    assert constraint.limit_text == ">= 95 %"
    assert constraint.is_least


@pytest.mark.parametrize(
    ("limit", "bounds", "holds"),
    [
        ("<= 15 %", (14, 14, 14), True),
        ("<= 15 %", (15, 15, 15), True),
        ("< 15 %", (15, 15, 15), False),
        ("<= 15 %", (14.9, 14, 16), None),
        (">= 15 %", (14.9, 14, 16), None),
        ("> 15 %", (15, 15, 15), False),
        (">= 15 %", (16, 15, 17), True),
        (">= 15 %", (13, 12, 14), False),
        (">= 15 %", (0, 0, np.nan), None),
    ],
)
def test_a_constraint_holds_or_does_not_or_cannot_be_told(
    limit: str, bounds: tuple[float, float, float], holds: bool | None
) -> None:
    (_, constraint) = constraint_set(one(limit=limit), "ours").constraints
    assert constraint.holds(Bounds(*bounds)) is holds


@pytest.mark.parametrize(
    ("document", "finding", "part"),
    [
        ([GOOD], "not a JSON object", None),
        ({"name": "x"}, "no 'constraints'", None),
        ({"name": "x", "constraints": []}, "no constraints", None),
        ({"name": "x", "constraints": [GOOD], "author": "me"}, "unknown key 'author'", None),
        ({"name": "x", "constraints": ["Rectum"]}, "not a JSON object", "constraint 1"),
        (one(limits="<= 1 %"), "unknown key 'limits'", "constraint 2"),
        (one(citation=" "), "citation is ' '", "constraint 2"),
        (one(limit=15), "limit is 15", "constraint 2"),
        (one(metric="V38.43"), "no metric 'V38.43'", "constraint 2"),
        (one(limit="15 %"), "limit '15 %'", "constraint 2"),
        (one(limit="<= 15 Gy %"), "limit '<= 15 Gy %'", "constraint 2"),
        (one(limit="<= 15 cc"), "of V38.43Gy[%], in cc", "constraint 2"),
        (one(limit="<= 15"), "in no unit", "constraint 2"),
        (one(metric="HI", limit="<= 0.1 %"), "of HI, in %", "constraint 2"),
        (one(metric="D98%", limit=">= 95 %"), "of D98%, in %", "constraint 2"),
    ],
)
def test_a_set_that_is_wrong_says_where(document: Any, finding: str, part: str | None) -> None:
    with pytest.raises(UsageError) as raised:
        constraint_set(document, "ours.json")
    assert finding in raised.value.finding
    assert (raised.value.where, raised.value.part) == ("ours.json", part)
    assert raised.value.expected


def test_a_key_left_out_and_an_unknown_structure() -> None:
    without = {k: v for k, v in GOOD.items() if k != "citation"}
    with pytest.raises(UsageError, match=r"ours: constraint 1: no 'citation'"):
        constraint_set({"name": "x", "constraints": [without]}, "ours")
    with pytest.raises(UnknownLabelError, match=r"ours: constraint 2: .*nearest: Rectum"):
        constraint_set(one(structure="Rektum"), "ours")


def test_text_that_is_no_json() -> None:
    with pytest.raises(UsageError, match=r"ours.json: not readable as JSON"):
        constraints_of_text(b"{", "ours.json")


def test_every_set_that_is_shipped_parses_and_cites() -> None:
    texts = shipped_sets()
    assert "icru" in texts
    for name, text in texts.items():
        parsed = constraints_of_text(text, name)
        assert parsed.name == name
        assert parsed.description
        assert all(c.citation and np.isfinite(c.limit) for c in parsed.constraints)
        assert json.loads(text)["name"] == name
