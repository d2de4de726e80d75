"""SQL reaches the tables and nothing else, however what it reaches for is hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.sql.session import session

#: What would read, write, load or tell of the machine; `{f}` is a file that is there.
REACHES = [
    "read_csv('{f}')",
    "read_text('{f}')",
    "read_blob('{f}')",
    "read_parquet('{f}')",
    "read_json_auto('{f}')",
    "read_ndjson('{f}')",
    "glob('{f}')",
    "sniff_csv('{f}')",
    "parquet_schema('{f}')",
    "'{f}'",
    '"{f}"',
    "'file://{f}'",
    "'https://127.0.0.1:9/x.parquet'",
    "'s3://bucket/x.parquet'",
    "duckdb_settings()",
    "duckdb_secrets()",
    "duckdb_extensions()",
    "pragma_database_list()",
    "query('FROM ''{f}''')",
    "query_table(['{f}'])",
    "information_schema.tables",
    "pg_catalog.pg_class",
    "sqlite_master",
    "main.patients",
]
#: The same queries, hidden.
HIDDEN = [
    "SELECT * FROM {r}",
    "FROM {r}",
    "/* a */ SELECT/**/*/* ' */FROM/**/{r} -- '",
    "--\nSELECT * FROM\n\t{r}\n--",
    "WITH a AS (FROM {r}) SELECT * FROM a",
    "WITH patients AS (SELECT * FROM {r}) SELECT * FROM patients",
    "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT 1 FROM {r}) FROM a",
    "WITH a AS MATERIALIZED (FROM {r}) SELECT count(*) FROM patients, a",
    "SELECT (SELECT count(*) FROM {r})",
    "SELECT * FROM patients WHERE EXISTS (FROM {r})",
    "SELECT * FROM patients JOIN {r} ON true",
    "SELECT * FROM patients ORDER BY (SELECT 1 FROM {r})",
    "SELECT * FROM patients LIMIT (SELECT 1 FROM {r})",
    "SELECT list(x) FILTER (WHERE EXISTS (FROM {r})) FROM range(3) t(x)",
    "SELECT 1 UNION ALL BY NAME SELECT * FROM {r}",
    "SELECT * FROM (SUMMARIZE (FROM {r}))",
    "SELECT * FROM patients POSITIONAL JOIN {r}",
    "(((SELECT * FROM {r})))",
    "SELECT [x FOR x IN (SELECT list(1) FROM {r})]",
    "PIVOT (FROM {r}) ON 1 USING count(*)",
    "VALUES ((SELECT count(*) FROM {r}))",
    "SELECT\u00a0*\u00a0FROM\u00a0{r}",
    "SELECT * FROM {r} AS patients",
]
#: Conditions that would reach, as a predicate.
CONDITIONS = [
    "EXISTS (FROM {r})",
    "part IN (SELECT 'base' FROM {r})",
    "(SELECT count(*) FROM {r}) > 0",
    "true) OR EXISTS (FROM {r}) OR (true",
    "part = 'base' /* ' */ AND EXISTS/**/(FROM {r}) --",
    "CASE WHEN EXISTS (FROM {r}) THEN true ELSE false END",
    "true UNION SELECT 1 FROM {r}",
    "true; SELECT * FROM {r}",
    "list_contains([x FOR x IN (SELECT list(1) FROM {r})], 1)",
]
STATEMENTS = [
    "COPY patients TO '{f}.csv'",
    "COPY (SELECT 1) TO '{f}.parquet'",
    "EXPORT DATABASE '{f}.d'",
    "ATTACH '{f}.db' AS x",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{f}'",
    "PRAGMA temp_directory='{f}.d'",
    "SET memory_limit='1TB'",
    "SET temp_directory='{f}.d'",
    "SET enable_external_access=true",
    "SET VARIABLE x = (FROM '{f}')",
    "CREATE TABLE x AS FROM patients",
    "CREATE SECRET (TYPE s3)",
    "CREATE OR REPLACE MACRO abs(x) AS 1",
    "IMPORT DATABASE '{f}.d'",
    "CALL duckdb_settings()",
    "EXECUTE x",
]
FUNCTIONS = [
    "getenv('HOME')",
    "main.getenv('HOME')",
    "GETENV('HOME')",
    "\"getenv\"('HOME')",
    "current_setting('memory_limit')",
    "getvariable('x')",
    "nextval('x')",
    "write_log('x')",
    "pg_read_file('{f}')",
    "list_transform(['HOME'], x -> getenv(x))",
    "list_transform(['HOME'], lambda x: getenv(x))",
    "list_reduce(['HOME', ''], (x, y) -> getenv(x))",
    "'HOME'.getenv()",
    "list_apply(['HOME'], x -> current_setting(x))",
    "list_aggregate(['a'], 'write_log')",
    "COALESCE(NULL, getenv('HOME'))",
    "COLUMNS(x -> getenv(x) IS NULL)",
]


@pytest.fixture(scope="module")
def phantom(dataset: Path) -> Cohort:
    return open_cohort(dataset)


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that must not be read, in a folder in which nothing may be written."""
    monkeypatch.setenv("HOME", "/home/hunter2")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "secret.csv"
    file.write_text("hunter2\n")
    return file


def refused(ask: object, text: str, secret: Path) -> None:
    """It is a query error, without the secret, and nothing was written."""
    with pytest.raises(QueryError) as caught:
        ask(text)  # type: ignore[operator]
    assert "hunter2" not in str(caught.value)
    assert os.listdir(secret.parent) == [secret.name]  # noqa: PTH208


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_query_reads_tables_alone(phantom: Cohort, secret: Path, hidden: str) -> None:
    for reach in REACHES:
        refused(phantom.sql, hidden.replace("{r}", reach.replace("{f}", str(secret))), secret)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_predicate_reads_tables_alone(phantom: Cohort, secret: Path, condition: str) -> None:
    for reach in REACHES:
        refused(phantom.where, condition.replace("{r}", reach.replace("{f}", str(secret))), secret)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_statement_but_select(phantom: Cohort, secret: Path, statement: str) -> None:
    text = statement.replace("{f}", str(secret))
    hiding = ("{s}", "/**/{s}", "SELECT 1; {s}", "{s};", "WITH a AS ({s}) FROM a", "\ufeff{s}")
    for hidden in hiding:
        refused(phantom.sql, hidden.replace("{s}", text), secret)
    for hidden in ("{s}", "true; {s}", "true) ; {s} --", "EXISTS ({s})", "({s}) IS NULL"):
        refused(phantom.where, hidden.replace("{s}", text), secret)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_tells_of_the_machine(phantom: Cohort, secret: Path, function: str) -> None:
    text = function.replace("{f}", str(secret))
    refused(phantom.sql, f"SELECT {text} FROM patients", secret)
    refused(phantom.sql, f"FROM patients WHERE ({text}) IS NULL", secret)
    refused(phantom.where, f"({text}) IS NULL", secret)


@pytest.mark.parametrize("reach", REACHES)
def test_even_unchecked_the_database_reaches_no_file(secret: Path, reach: str) -> None:
    """What the check before it may overlook."""
    text = f"SELECT count(*) FROM {reach.replace('{f}', str(secret))}"
    if any(known in reach for known in ("duckdb_", "pragma_", "_schema.t", "pg_", "sqlite_")):
        return  # these tell of this empty database alone
    with pytest.raises(QueryError), session(text, {}) as connection:
        connection.execute(text).fetchall()


def test_what_does_not_fit_into_memory_is_not_put_on_a_disk() -> None:
    with session("", {}) as connection:
        found = connection.execute(
            "SELECT current_setting('temp_directory'), current_setting('memory_limit')"
        ).fetchone()
    assert found == ("", "1.8 GiB")


SORT = """
import sys
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.sql import session as sql
query = "SELECT count(DISTINCT hash(range)::VARCHAR || 'xxxxxxxxxxxxxxxx') FROM range(3000000)"
try:
    with sql.session(query, {}, memory=60_000_000) as connection:
        connection.execute(query).fetchall()
except QueryError as error:
    print(error)
"""


def test_a_query_beyond_its_memory_fails_and_leaves_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", SORT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "emory" in ran.stdout, ran.stdout
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_an_interrupt_and_no_error_of_its_own() -> None:
    # What DuckDB makes of it; when it looks for one depends on the query.
    with pytest.raises(KeyboardInterrupt), session("SELECT 1", {}):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), session("SELECT 1", {}):
        raise RuntimeError("another")


def test_an_error_that_duckdb_cuts_amid_a_character_is_an_error_like_others(
    phantom: Cohort,
) -> None:
    with pytest.raises(QueryError):
        phantom.where("NOT ('\u202e' IS NOT DISTINCT FROM b'')")


def test_a_text_without_end_is_refused_at_once(phantom: Cohort) -> None:
    for ask, text in (
        (phantom.where, "true" + " AND true" * 100_000),
        (phantom.sql, "SELECT " + "(" * 200_000 + "1" + ")" * 200_000),
        (phantom.where, "'" + "x" * 200_000 + "' = part"),
    ):
        with pytest.raises(QueryError, match="characters; expected at most 100000"):
            ask(text)
    for depth in (50, 500, 5_000, 20_000):
        for text in ("(" * depth + "true" + ")" * depth, "NOT " * depth + "true"):
            try:
                assert len(phantom.where(text)) in (0, len(phantom))
            except QueryError:
                assert depth > 50
