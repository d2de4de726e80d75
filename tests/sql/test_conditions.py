"""Conditions on one table's own columns, and what a query's errors and bounds say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import QueryError, QueryLimitError, QueryProcessError
from lundprobe_zarr.sql.condition import rows_where
from lundprobe_zarr.sql.predicate import parse_predicate
from lundprobe_zarr.sql.query import parse_query, run_query
from lundprobe_zarr.sql.worker import SqlWorker, limits


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("volume_cc > 40 AND structure = 'Rectum'", lambda r: r["structure"] == "Rectum"),
        ("structure LIKE 'Rect%' AND volume_cc > 40", lambda r: r["structure"] == "Rectum"),
        ("fold > 3", lambda r: (r["fold"] or 0) > 3),  # null is not true
        ("NOT fold > 3", lambda r: r["fold"] is not None and r["fold"] <= 3),
    ],
)
def test_the_rows_where_a_condition_is_true(many: Cohort, condition: str, expected) -> None:
    table = many.dataset.table("structures")
    found = rows_where(table, "structures", condition, limits())
    rows = table.to_pylist()
    wanted = [expected(r) and ("40" not in condition or r["volume_cc"] > 40) for r in rows]
    assert found.tolist() == wanted
    assert any(wanted)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("volume > 3", "nearest: volume_cc"),
        ("structure = 'Rectun'", "nearest: Rectum"),
        ("volume_cc", "is a number, not true or false"),
        ("count(*) > 2", "need several rows"),
        ("sum(volume_cc) OVER () > 2", "need several rows"),
        ("true ORDER BY 1", "holds more than a condition"),
        ("volume_cc IN (SELECT 1)", "holds a subquery"),
        ("volume_cc > random()", "changes between runs"),
        ("true) OR (true", "syntax error"),
        (" ", "empty"),
    ],
)
def test_what_is_no_condition_on_a_table(many: Cohort, condition: str, said: str) -> None:
    table = many.dataset.table("structures")
    with pytest.raises(QueryError, match=said):
        rows_where(table, "structures", condition, limits())


@pytest.mark.parametrize(
    ("query", "position"),
    [
        ("SELECT protocl FROM patients", 7),
        ("SELECT protocol,\n  protocl\nFROM patients", 19),
        ("SELECT 1 FROM patients WHERE WHERE", 29),
        ("SELECT 'é' FROM patients WHERE WHERE", 31),
        ("SELECT n_fiducials FROM patients, " + "patients," * 30 + " x", None),
        ("SELECT 'é', protocl FROM patients", None),  # the caret does not count characters here
    ],
)
def test_a_mistake_has_a_position(many: Cohort, query: str, position: int | None) -> None:
    with pytest.raises(QueryError) as error:
        many.sql(query)
    assert error.value.position == position


def test_a_predicates_mistake_has_a_position() -> None:
    with pytest.raises(QueryError) as error:
        parse_predicate("n_fiducials = = 3")
    assert error.value.position == 14


def test_rows_and_size_of_a_result_are_bounded(many: Cohort) -> None:
    everyone = np.arange(467)
    bounds = replace(limits(), rows=3, size=1_000_000)
    query = "SELECT patient_id FROM patients ORDER BY patient_id DESC"
    found = run_query(many.dataset, query, everyone, bounds)
    assert found.column(0).to_pylist() == sorted(many.ids)[:-4:-1]
    with pytest.raises(QueryLimitError, match="expected at most 1000000") as error:
        run_query(many.dataset, "SELECT repeat('x', 2000000)", everyone, bounds)
    assert error.value.limit == "result"


def test_a_given_worker_runs_queries_and_predicates(many: Cohort) -> None:
    own = SqlWorker()
    try:
        everyone = np.arange(467)
        found = parse_query("SELECT count(*)::INT AS n FROM clinical").run(
            many.dataset, everyone, limits(), own
        )
        assert found.column("n").to_pylist() == [many.sql("SELECT 1 FROM clinical").shape[0]]
        sent = own._count
        parse_query("SELECT 1 FROM clinical").run(many.dataset, everyone, limits(), own)
        assert own._count == sent  # a view is made once, so it is sent once
        chosen = parse_predicate("part LIKE 'ext%'", limits(), own).choose(many.dataset, everyone)
        assert len(chosen) == len(many.where("part = 'extended'"))
        assert own._count > sent
    finally:
        own.close()


def test_a_process_that_does_not_start_is_told_from_a_wrong_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lundprobe_zarr.sql.worker._PROGRAM", "raise SystemExit(3)")
    own = SqlWorker()
    with pytest.raises(QueryProcessError, match="exit status 3"):
        own.run("SELECT 1", ["SELECT 1"], {}, limits())
    own.close()
