"""`Cohort.sql`: the dataset's tables, and nothing else within reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.schema.tables import COMPARED, TABLES
from lundprobe_zarr.sql.session import session

reachable_only_by_python = [1, 2, 3]


def test_all_tables_hold_the_cohorts_patients_and_no_others(phantom: Cohort) -> None:
    chosen = phantom.where("part = 'base' AND protocol = 'oldAcq'")
    for table in TABLES:
        whole = phantom.sql(f"SELECT DISTINCT patient_id FROM {table}")
        part = chosen.sql(f"SELECT DISTINCT patient_id FROM {table}")
        compared = table in COMPARED  # of these, extended patients alone have rows
        everyone = phantom.where("part = 'extended'") if compared else phantom
        assert set(whole.patient_id) == set(everyone.ids)
        assert set(part.patient_id) == (set() if compared else set(chosen.ids))


def test_the_example_of_the_documentation(phantom: Cohort) -> None:
    frame = phantom.sql(
        "SELECT protocol, avg(volume_cc) AS cc, sum(voxels) AS voxels FROM structures "
        "JOIN patients USING (patient_id, protocol) WHERE grid = 'mri' GROUP BY 1 ORDER BY 1"
    )
    assert list(frame.protocol) == ["newAcq", "oldAcq"]
    assert frame.voxels.dtype == "int64"  # DuckDB's sum is a HUGEINT
    rows = phantom.sql("SELECT * FROM structures WHERE grid = 'mri'")
    assert list(frame.cc) == pytest.approx(list(rows.groupby("protocol").volume_cc.mean()))


@pytest.mark.parametrize(
    "query",
    [
        "DESCRIBE patients",
        "SUMMARIZE structures",
        "FROM slices",
        "SELECT * FROM Patients;",
        "-- a comment\nSELECT 1",
        "(SELECT 1) UNION ALL SELECT 2",
        "VALUES (1)",
        "WITH patients AS (SELECT 1 AS a) SELECT a FROM patients, range(2)",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t",
        "SELECT * FROM (PIVOT patients ON protocol IN ('oldAcq') USING count(*) GROUP BY part)",
        "SELECT unnest(missing_structures) FROM patients",
        "SELECT random(), now(), current_date, uuid(), TIME '10:00', NULL",
        "SELECT 1 AS a, 2 AS a",
        "SELECT 170141183460469231731687303715884105727::HUGEINT, 1.5::DECIMAL(9, 2)",
        "SELECT total, indices FROM foreground",
        "SELECT (SELECT max(volume_cc) FROM structures s WHERE s.patient_id = p.patient_id) "
        "FROM patients p",
    ],
)
def test_selects_of_all_kinds_run(phantom: Cohort, query: str) -> None:
    assert len(phantom.sql(query)) > 0


WRITES = [
    "COPY patients TO '{tmp}/out.csv'",
    "COPY (SELECT 1) TO '{tmp}/out.parquet' (FORMAT parquet)",
    "EXPORT DATABASE '{tmp}/out'",
    "IMPORT DATABASE '{tmp}/out'",
    "ATTACH '{tmp}/out.db'",
    "DETACH memory",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs",
    "LOAD httpfs",
    "CREATE TABLE x (a INTEGER)",
    "CREATE VIEW x AS SELECT 1",
    "CREATE MACRO f() AS 1",
    "CREATE SECRET (TYPE s3)",
    "INSERT INTO patients SELECT * FROM patients",
    "WITH x AS (INSERT INTO patients FROM patients RETURNING 1) SELECT * FROM x",
    "UPDATE patients SET part = 'x'",
    "DELETE FROM patients",
    "DROP VIEW patients",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "SET threads = 1",
    "SET GLOBAL enable_external_access = true",
    "RESET threads",
    "SET VARIABLE a = 1",
    "USE memory",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "EXPLAIN SELECT 1",
    "PREPARE a AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY patients TO '{tmp}/out.csv'",
    "",
]
READS = [
    "FROM read_csv('{tmp}/secret.csv')",
    "FROM read_csv_auto(['{tmp}/secret.csv'])",
    "FROM read_parquet('/etc/passwd')",
    "FROM read_json('{tmp}/secret.csv')",
    "FROM read_text('{tmp}/secret.csv')",
    "FROM read_blob('/etc/passwd')",
    "FROM sniff_csv('{tmp}/secret.csv')",
    "FROM parquet_metadata('/etc/passwd')",
    "FROM glob('{tmp}/*')",
    "FROM '{tmp}/secret.csv'",
    "DESCRIBE '{tmp}/secret.csv'",
    "SUMMARIZE '{tmp}/secret.csv'",
    "WITH a AS (FROM '{tmp}/secret.csv') FROM a",
    "SELECT (SELECT min(column0) FROM read_csv('{tmp}/secret.csv'))",
    "SELECT * FROM patients WHERE patient_id IN (FROM '{tmp}/secret.csv')",
    "FROM query('SELECT 1')",
    "FROM query_table('patients')",
    "FROM json_execute_serialized_sql('x')",
    "SELECT getenv('HOME')",
    "SELECT current_setting('home_directory')",
    "SELECT getvariable('a')",
    "SELECT nextval('a')",
    "SELECT write_log('a')",
    "FROM duckdb_settings()",
    "FROM duckdb_secrets()",
    "FROM information_schema.tables",
    "FROM sqlite_master",
    "FROM pg_catalog.pg_class",
    "FROM main.patients",
    "SHOW TABLES",
    "SHOW DATABASES",
    "FROM reachable_only_by_python",
    "FROM frame",
    "SELECT ?",
]


@pytest.mark.parametrize("query", [*WRITES, *READS])
def test_nothing_else_can_be_reached_or_written(
    phantom: Cohort, tmp_path: Path, query: str
) -> None:
    frame = phantom.patients
    assert len(frame) == 4
    (tmp_path / "secret.csv").write_text("secret\n")
    with pytest.raises(QueryError) as caught:
        phantom.sql(query.replace("{tmp}", str(tmp_path)))
    assert "LINE 1" not in str(caught.value)
    assert os.listdir(tmp_path) == ["secret.csv"]  # noqa: PTH208 - nothing else was written


@pytest.mark.parametrize("query", [q for q in [*WRITES, *READS] if "tmp" in q or "etc" in q])
def test_the_database_itself_reaches_no_file(tmp_path: Path, query: str) -> None:
    """Even if the check before it let a query through."""
    (tmp_path / "secret.csv").write_text("secret\n")
    with pytest.raises(QueryError), session(query, {}) as connection:
        connection.execute(query.replace("{tmp}", str(tmp_path))).fetchall()
    assert os.listdir(tmp_path) == ["secret.csv"]  # noqa: PTH208


def test_the_databases_settings_are_locked() -> None:
    for setting in ("enable_external_access = true", "memory_limit = '1TB'", "threads = 64"):
        query = f"SET {setting}"
        with pytest.raises(QueryError, match="locked"), session(query, {}) as connection:
            connection.execute(query)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM patient", "no table 'patient' to read; nearest: patients"),
        ("SELECT volum FROM structures", "no column 'volum' in what is .*; nearest: volume_cc$"),
        ("FROM structures WHERE structure = CTV", "'CTV' .*; a text takes .* quotes: 'CTVT_427'$"),
        ("FROM structures WHERE structure = BODY", "'BODY' .*; a text takes .* quotes: 'BODY'$"),
        ("protocol = 'newAcq'", r"syntax error .*; for a condition alone use cohort\.where"),
        ("SELECT 1 FROM", "syntax error"),
        ("SELECT sin(protocol) FROM patients", "sin cannot take text$"),
        ("SELECT mri_shape[0] FROM patients", r"element \[0\] of a list; SQL counts from 1"),
        ("SELECT 1 FROM structures WHERE grid = mri", "a text takes single quotes: 'mri'$"),
    ],
)
def test_a_mistake_is_named_before_anything_is_read(
    dataset: Path, reads: Any, query: str, message: str
) -> None:
    cohort = open_cohort(dataset)
    with reads.counted() as names, pytest.raises(QueryError, match=message):
        cohort.sql(query)
    assert names == []


def test_a_constant_that_is_no_number_is_named(phantom: Cohort) -> None:
    with pytest.raises(QueryError, match=r"'abc' is not a number$"):
        phantom.sql("SELECT volume_cc > 'abc' FROM structures")


def test_only_the_tables_of_the_query_are_read(dataset: Path, reads: Any) -> None:
    cohort = open_cohort(dataset)
    with reads.counted() as names:
        cohort.sql("SELECT s.* FROM slices s JOIN patients USING (patient_id)")
    assert {Path(n).parent.name for n in names} == {"slices"}


def test_a_query_cannot_take_all_memory_and_cores() -> None:
    query = "SELECT current_setting('memory_limit'), current_setting('threads')"
    with session(query, {}) as connection:
        found = connection.execute(query).fetchone()
    assert found is not None
    assert found[0] == "1.8 GiB"
    assert found[1] <= 4
