"""SQL and cohorts over HTTP: forms of results, limits, and what others get meanwhile."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.requests import ClientDisconnect

from benchmarks.cohort import simulate
from lundprobe_zarr.cohort import load_cohort, open_cohort
from lundprobe_zarr.cohort.saved import SavedCohort
from lundprobe_zarr.service.access.callers import Caller, Limits
from lundprobe_zarr.service.datasets.queries import Queries
from lundprobe_zarr.service.http import bodies
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.sql import questions, results
from lundprobe_zarr.service.sql.results import format_of

COUNTS = "SELECT protocol, count(*) AS n FROM patients GROUP BY ALL ORDER BY 1"
RUNAWAYS = [
    "SELECT count(*) FROM range(1000000000000) a WHERE hash(a.range) = 1",
    "SELECT count(*) FROM slices a, slices b, slices c, slices d, slices e "
    "WHERE hash(a.z_index + b.z_index + c.z_index + d.z_index + e.z_index) = 1",
    "SELECT list_sum(range(300000000))",
]


@pytest.fixture(scope="module")
def limited(start_for_module, dataset):
    """A service whose queries take at most two seconds, two at a time."""
    options = {"sql": {"workers": 2, "seconds": 2.0, "memory": "300MB"}}
    served = start_for_module({"lund-probe/standard": dataset}, options=options)
    assert ask(served, COUNTS).status_code == 200  # its processes run
    return served


def post(served, what, body, name=None, headers=None, **query):
    with served.client as client:
        url = f"/api/datasets/{name or served.name}/{what}"
        return client.post(url, json=body, params=query, headers=headers)


def ask(served, sql, **fields):
    return post(served, "sql", {"sql": sql, **fields})


def test_json_has_columns_types_and_rows(served, dataset):
    answer = ask(served, COUNTS)
    assert answer.status_code == 200, answer.text
    expected = open_cohort(dataset).sql(COUNTS)
    assert answer.json() == {
        "columns": ["protocol", "n"],
        "types": ["string", "int64"],
        "rows": expected.to_numpy().tolist(),
        "num_rows": len(expected),
        "truncated": False,
    }
    assert answer.headers["x-truncated"] == "false"
    assert len(answer.headers["x-revision"]) == 40


@pytest.mark.parametrize("how", ["query", "accept"])
def test_arrow_parquet_and_csv(served, dataset, how):
    query = "SELECT patient_id, missing_structures, mri_shape, dose_max_gy FROM patients ORDER BY 1"
    expected = open_cohort(dataset).sql_table(query)

    def get(name, media):
        if how == "query":
            answer = post(served, "sql", {"sql": query}, format=name)
        else:
            answer = post(served, "sql", {"sql": query}, headers={"Accept": media})
        assert answer.headers["content-type"].partition(";")[0] == media
        return answer.content

    arrow = get("arrow", "application/vnd.apache.arrow.stream")
    assert pa.ipc.open_stream(arrow).read_all() == expected
    parquet = get("parquet", "application/vnd.apache.parquet")
    assert pq.read_table(io.BytesIO(parquet)).to_pylist() == expected.to_pylist()
    rows = list(csv.DictReader(io.StringIO(get("csv", "text/csv").decode())))
    assert [row["patient_id"] for row in rows] == expected.column(0).to_pylist()
    assert [json.loads(row["mri_shape"]) for row in rows] == expected.column(2).to_pylist()


def test_what_json_has_no_form_for(served):
    query = (
        "SELECT 'nan'::DOUBLE AS a, DATE '2025-01-02' AS b, 'x'::BLOB AS c, "
        "INTERVAL 2 HOURS AS d, [1.5, 'inf'::DOUBLE] AS e, 1 AS a, 12345678901234567890::HUGEINT"
    )
    answer = ask(served, query)
    assert answer.status_code == 200, answer.text
    row = answer.json()["rows"][0]
    assert row[:3] == [None, "2025-01-02", "eA=="]
    assert row[4:6] == [[1.5, None], 1]
    columns = answer.json()["columns"]
    assert len(set(columns)) == len(columns) == 7  # the second "a" has a name of its own
    refused = post(served, "sql", {"sql": "SELECT INTERVAL 2 MONTHS AS d"}, format="parquet")
    assert (refused.status_code, "Ask for another format" in refused.text) == (422, True)


def test_long_results_are_written_in_pieces(served, monkeypatch):
    query = "SELECT range AS n, [range, NULL] AS pair FROM range(2500) ORDER BY n"
    whole = [post(served, "sql", {"sql": query}, format=name).content for name in ("json", "csv")]
    monkeypatch.setattr(results, "_PIECE", 1000)
    assert whole == [
        post(served, "sql", {"sql": query}, format=name).content for name in ("json", "csv")
    ]
    assert json.loads(whole[0])["rows"] == [[n, [n, None]] for n in range(2500)]
    none = ask(served, "SELECT 1 AS n WHERE false")
    assert (none.json()["rows"], none.json()["num_rows"]) == ([], 0)


def test_views_and_joins(served, dataset):
    query = (
        "SELECT structure, round(avg(volume_cc), 6) AS cc FROM clinical JOIN patients "
        "USING (patient_id) GROUP BY ALL ORDER BY 1"
    )
    expected = open_cohort(dataset).sql(query)
    assert ask(served, query).json()["rows"] == expected.to_numpy().tolist()


def test_a_limit_cuts_and_says_so(served):
    cut = ask(served, "SELECT range AS n FROM range(100) ORDER BY n DESC", limit=3)
    assert cut.json()["rows"] == [[99], [98], [97]]
    assert (cut.json()["truncated"], cut.headers["x-truncated"]) == (True, "true")
    whole = ask(served, "SELECT range AS n FROM range(3)", limit=3)
    assert (whole.json()["truncated"], whole.headers["x-truncated"]) == (False, "false")


def test_without_a_limit_a_large_result_is_refused(served, monkeypatch):
    monkeypatch.setattr(questions, "_MOST_ROWS", 1000)
    refused = ask(served, "SELECT * FROM range(1001)")
    assert (refused.status_code, "more than 1000 rows" in refused.text) == (413, True)
    assert refused.headers["x-error-code"] == "QueryLimit"
    large = ask(served, "SELECT repeat('x', 1000000) FROM range(100)")
    assert large.status_code == 413
    assert "expected at most 64000000" in large.text or "bytes" in large.text
    assert large.headers["x-error-code"] == "QueryLimit"


def test_a_mistake_is_explained_with_its_position(served):
    wrong = ask(served, "SELECT protocl\nFROM patients")
    assert wrong.status_code == 422
    assert "nearest: protocol" in wrong.json()["error"]
    assert wrong.json()["position"] == 7
    syntax = ask(served, "SELECT 1 FROM patients WHERE WHERE")
    assert (syntax.status_code, syntax.json()["position"]) == (422, 29)
    assert syntax.headers["x-error-code"] == "InvalidQuery"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DROP TABLE patients", "read, not changed"),
        ("SELECT 1; SELECT 2", "expected one SELECT"),
        ("SELECT * FROM patient", "nearest: patients"),
        ("SELECT * FROM '/etc/passwd'", "no table '/etc/passwd'"),
        ("SELECT * FROM read_csv('/etc/passwd')", "not available"),
        ("SELECT * FROM glob('*')", "not available"),
        ("SELECT getenv('HOME')", "no function 'getenv'"),
        ("SELECT current_setting('temp_directory')", "not available"),
        ("ATTACH 'x.db'", "read, not changed"),
        ("SELECT * FROM duckdb_settings()", "not available"),
        ("SELECT count(*) FROM clinical WHERE structure = 'Rectun'", "nearest: Rectum"),
        ("SELECT ?", "parameter"),
        ("(" * 9000, "'(((("),
        ("SELECT 'a'::INT", "not a whole number"),
    ],
)
def test_what_is_no_select_of_the_tables(served, dataset, sql, said):
    answer = ask(served, sql)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["error"]
    for place in (dataset, Path(sys.executable), Path.home(), Path(__file__).parent):
        assert str(place) not in answer.text


@pytest.mark.parametrize("sql", RUNAWAYS)
def test_a_runaway_ends_at_its_limit_and_others_are_served(limited, sql):
    with ThreadPoolExecutor(2) as threads:
        started = time.monotonic()
        runaway = threads.submit(ask, limited, sql)
        time.sleep(0.3)
        others = [ask(limited, COUNTS)]
        is_first = not runaway.done()
        others += [ask(limited, COUNTS) for _ in range(2)]
        ended = runaway.result()
        total = time.monotonic() - started
    assert [other.status_code for other in others] == [200] * 3
    assert ended.status_code == 422, ended.text
    assert ended.headers["x-error-code"] == "QueryLimit"
    assert "limit of" in ended.json()["error"]
    assert "--timeout" not in ended.text
    if "list_sum" not in sql:  # that one ends at its memory limit, at once
        assert is_first  # before the other has ended
    assert total < 10  # the machine may be busy
    assert ask(limited, COUNTS).status_code == 200


def test_an_unbounded_predicate_runs_within_limits_too(limited):
    predicate = "len(range(n_fiducials)) = 3"
    found = post(limited, "cohort", {"where": predicate})
    assert found.status_code == 200, found.text
    ended = post(limited, "cohort", {"where": "list_sum(range(300000000)) > n_fiducials"})
    assert (ended.status_code, ended.headers["x-error-code"]) == (422, "QueryLimit")


def test_a_query_ends_when_its_client_leaves(start_service, dataset):
    options = {"sql": {"workers": 1, "seconds": 60.0}}
    served = start_service({"lund-probe/standard": dataset}, options=options)
    assert ask(served, COUNTS).status_code == 200
    body = json.dumps({"sql": RUNAWAYS[0]})
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        head = f"POST /api/datasets/{served.name}/sql HTTP/1.1\r\nHost: x\r\n"
        head += f"Authorization: Bearer {served.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        leaving.sendall((head + body).encode())
        time.sleep(0.5)
    started = time.monotonic()
    assert ask(served, COUNTS).status_code == 200  # the only worker is free again
    assert time.monotonic() - started < 15
    lines = [json.loads(line) for line in served.audit.read_text().splitlines()]
    assert [line["status"] for line in lines if line.get("sql") == RUNAWAYS[0]] == [499]


def test_the_revision_may_be_named(served):
    sha = ask(served, "SELECT 1").headers["x-revision"]
    assert ask(served, "SELECT 1", revision=sha).status_code == 200
    gone = ask(served, "SELECT 1", revision="0" * 40)
    assert (gone.status_code, gone.headers["x-error-code"]) == (404, "RevisionNotFound")


def test_a_cohort_has_ids_and_a_file_that_can_be_loaded(served, dataset, tmp_path):
    predicate = "protocol = 'newAcq' AND n_fiducials > 0"
    expected = open_cohort(dataset).where(predicate)
    answer = post(served, "cohort", {"where": predicate})
    assert answer.status_code == 200, answer.text
    assert answer.json()["patient_ids"] == expected.ids
    assert answer.json()["num_patients"] == len(expected)
    alone = post(served, "cohort", {"where": predicate}, format="file")
    assert "cohort.json" in alone.headers["content-disposition"]
    (tmp_path / "theirs.json").write_bytes(alone.content)
    expected.save(tmp_path / "ours.json")
    assert alone.text == (tmp_path / "ours.json").read_text()
    assert load_cohort(tmp_path / "theirs.json", dataset) == expected
    wrong = post(served, "cohort", {"where": "protocl = 'x'"})
    assert (wrong.status_code, "nearest: protocol" in wrong.text) == (422, True)


def test_the_audit_log_has_the_sql(served):
    ask(served, COUNTS)
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert (line["sql"], line["dataset"], line["method"]) == (COUNTS, served.name, "POST")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 60_000, 400, "no JSON"),
        (b"[]", 422, "no JSON object"),
        (b"{}", 422, "'sql' is required"),
        (b'{"sql": 3}', 422, "expected a text"),
        (b'{"sql": ""}', 422, "expected 1 to"),
        (b'{"sql": "SELECT 1", "limit": 0}', 422, "expected 1 to"),
        (b'{"sql": "SELECT 1", "limit": true}', 422, "expected a whole number"),
        (b'{"sql": "SELECT 1", "limt": 3}', 422, "nearest: limit"),
        (b'{"sql": "SELECT \\u0000"}', 422, "null character"),
        (b'{"sql": "SELECT \\ud800"}', 422, ""),
        (b'{"sql": "' + b"x" * 66_000 + b'"}', 413, "more than 65536 bytes"),
    ],
)
def test_bodies_that_are_none(served, body, status, said):
    with served.client as client:
        answer = client.post(f"/api/datasets/{served.name}/sql", content=body)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["error"]
        pieces = (body[n : n + 9000] for n in range(0, len(body), 9000))
        again = client.post(f"/api/datasets/{served.name}/sql", content=pieces)
        assert again.status_code == status  # without its length in the head


def test_a_body_that_is_too_slow(served, monkeypatch):
    monkeypatch.setattr(bodies, "_SECONDS", 0.3)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        head = f"POST /api/datasets/{served.name}/sql HTTP/1.1\r\nHost: x\r\n"
        head += f"Authorization: Bearer {served.token}\r\nContent-Length: 50\r\n\r\n{{"
        slow.sendall(head.encode())
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_other_mistakes(served):
    assert post(served, "sql", {"sql": "SELECT 1"}, name="no/such").status_code == 404
    assert post(served, "sql", {"sql": "SELECT 1"}, format="xlsx").status_code == 422
    refused = post(served, "sql", {"sql": "SELECT 1"}, headers={"Accept": "image/png"})
    assert refused.status_code == 406
    with served.client as client:
        wrong = client.get(f"/api/datasets/{served.name}/sql")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    nobody = httpx.post(f"{served.url}/api/datasets/{served.name}/sql", json={"sql": "SELECT 1"})
    assert nobody.status_code == 401


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        (None, "json"),
        ("*/*", "json"),
        ("text/html, application/json;q=0.9, */*;q=0.1", "json"),
        ("text/csv;q=0.5, application/vnd.apache.parquet", "parquet"),
        ("application/json;q=0, text/*", "csv"),
    ],
)
def test_the_form_that_is_wanted_most(accept, name):
    assert format_of(None, accept).name == name


class Asking:
    """A request whose client stays until `left` is set."""

    def __init__(self):
        self.left = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_callers_take_turns():
    async def scenario():
        queries, order, gate = Queries(workers=1), [], threading.Event()
        queries._have_started = True  # no process is needed here

        def job(name):
            def work(_):
                gate.wait(10)
                order.append(name)

            return asyncio.ensure_future(queries.run(Asking(), Caller(name), work))

        jobs = [job(name) for name in "aaaabbc"]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*jobs)
        queries.close()
        return order

    assert asyncio.run(scenario()) == ["a", "a", "b", "c", "a", "b", "a"]


def test_too_many_queries_are_refused_and_those_who_leave_make_room(monkeypatch):
    monkeypatch.setattr("lundprobe_zarr.service.datasets.queries._MOST_WAITING", 3)
    monkeypatch.setattr("lundprobe_zarr.service.datasets.queries._MOST_OF_ONE_CALLER", 2)

    async def scenario():
        queries, gate = Queries(workers=1), threading.Event()
        queries._have_started = True
        requests = [Asking() for _ in range(6)]

        def job(name, request):
            return asyncio.ensure_future(
                queries.run(request, Caller(name), lambda _: gate.wait(10))
            )

        jobs = [job(name, requests[n]) for n, name in enumerate(("a", "a", "a", "b"))]
        await asyncio.sleep(0.05)
        refused = []
        for name in ("a", "b"):
            with pytest.raises(HttpError) as error:
                await queries.run(Asking(), Caller(name), lambda _: None)
            refused.append((error.value.status, error.value.headers["Retry-After"]))
        requests[1].left.set()  # one that waits
        with pytest.raises(ClientDisconnect):
            await jobs[1]
        gate.set()
        assert await asyncio.gather(jobs[0], jobs[2], jobs[3]) == [True] * 3
        assert await queries.run(Asking(), Caller("a"), lambda _: 7) == 7
        queries.close()
        return refused

    assert asyncio.run(scenario()) == [(429, "2"), (503, "2")]


def test_a_token_may_have_fewer_seconds():
    queries = Queries(seconds=30)
    assert queries.bounds(Caller("a")).timeout == 30
    assert queries.bounds(Caller("a", limits=Limits(sql_seconds=5))).timeout == 5
    assert queries.bounds(Caller("a", limits=Limits(sql_seconds=99))).timeout == 30
    queries.close()


def test_a_dataset_without_some_tables(start_service, tmp_path):
    simulate(tmp_path, 20)
    served = start_service({"lund-probe/standard": tmp_path})
    missing = ask(served, "SELECT * FROM slices")
    assert missing.status_code == 422
    assert "no table 'slices'; who holds it makes it with" in missing.json()["error"]
    assert "`lundprobe-zarr finalise DATASET --rebuild`" in missing.json()["error"]
    assert "It has patients, structures" in missing.json()["error"]
    assert str(tmp_path) not in missing.text
    for table in ("agreement", "uncertainty"):
        compared = ask(served, f"SELECT count(*) FROM {table}")
        assert compared.status_code == 422
        assert "`lundprobe-zarr measure DATASET`" in compared.json()["error"]
    unknown = ask(served, "SELECT * FROM xyz").json()["error"]
    assert "(agreement and uncertainty if `measure` was run)" in unknown
    assert ask(served, "SELECT count(*) FROM planning").status_code == 200


def test_errors_name_no_place_and_failures_of_ours_are_not_the_clients(
    start_service, dataset, monkeypatch
):
    monkeypatch.setattr("lundprobe_zarr.sql.worker._PROGRAM", "raise SystemExit(3)")
    served = start_service({"lund-probe/standard": dataset})
    failed = ask(served, "SELECT 1")
    assert failed.status_code == 503
    assert failed.headers["retry-after"] == "5"
    assert sys.executable not in failed.text
    service = served.app._service
    assert service.without_places(f"no x in {dataset}") == f"no x in {served.name}"


def test_a_saved_cohort_is_checked(served, dataset, tmp_path):
    cohort, file = open_cohort(dataset), tmp_path / "cohort.json"
    chosen = cohort.where("part = 'base'").where("n_fiducials = 3")
    chosen.save(file)
    answer = post(served, "saved", {"text": file.read_text()})
    assert answer.json() == {
        "kind": "lundprobe cohort",
        "differences": [],
        "subsets": [
            {
                "name": "cohort",
                "where": "(part = 'base') AND (n_fiducials = 3)",
                "patient_ids": chosen.ids,
            }
        ],
    }
    changed = post(served, "saved", {"text": file.read_text().replace("= 3", "= 2")})
    assert changed.status_code == 422
    assert "it was changed or damaged since it was saved" in changed.json()["error"]
    other = SavedCohort(
        dataset=cohort.dataset.identity.model_copy(update={"digest": "0" * 64}),
        selection=[],
        patient_ids=cohort.ids,
    )
    assert post(served, "saved", {"text": other.text()}).json()["differences"] == [
        "the same number of patients, but not the same ones or not the same files"
    ]


def saved_cohort(dataset, patients: int) -> str:
    """Return the file of a cohort of another dataset, with so many patients."""
    identity = open_cohort(dataset).dataset.identity.model_copy(update={"digest": "0" * 64})
    ids = [f"newAcq_{number:016x}" for number in range(patients)]
    return SavedCohort(dataset=identity, selection=["true"], patient_ids=ids).text()


def test_a_large_saved_cohort_is_read(served, dataset):
    text = saved_cohort(dataset, 20_000)
    assert len(text) > 9 * bodies.MOST_BYTES
    [subset] = post(served, "saved", {"text": text}).json()["subsets"]
    assert len(subset["patient_ids"]) == 20_000


def test_a_saved_file_has_a_limit_too(served):
    answer = post(served, "saved", {"text": "x" * 8 * 1024**2})
    assert answer.status_code == 413
    assert "more than 8388608 bytes" in answer.json()["error"]


def test_a_saved_split_is_checked(served, dataset, tmp_path):
    file = tmp_path / "split.json"
    split = open_cohort(dataset).split(test=0.25, folds=2, stratify=[])
    split.save(file)
    found = post(served, "saved", {"text": file.read_text()}).json()
    assert [s["name"] for s in found["subsets"]] == ["test", "validation 0", "validation 1"]
    assert found["subsets"][0]["patient_ids"] == split.test.ids


@pytest.mark.parametrize("text", ["x", "[]", "{}", '{"kind": "lundprobe splits"}', "[" * 9999])
def test_what_is_no_saved_file(served, text):
    answer = post(served, "saved", {"text": text})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("the saved file: ")
