"""The dataset viewer's API: its shapes, its values, and what is wrong with a request."""

from __future__ import annotations

import json
import math
import socket

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DatasetInfo, Features, config
from datasets.utils import _dataset_viewer

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.service.datasets.statistics import column_statistics
from lundprobe_zarr.service.datasets.tables import feature
from lundprobe_zarr.service.hub import viewer


def ask(served, path, expected=200, **query):
    query.setdefault("dataset", served.name)
    with served.client as client:
        answer = client.get(path, params={k: v for k, v in query.items() if v is not None})
    assert answer.status_code == expected, answer.text
    return answer


def table_of(dataset, config, split):
    """A split as its Parquet files hold it."""
    files = open_cohort(dataset).manifest.tables[config][split]
    return pa.concat_tables(pq.read_table(dataset / file) for file in files)


@pytest.fixture(scope="module")
def pairs(served, dataset):
    """Each configuration with each split."""
    tables = open_cohort(dataset).manifest.tables
    return [(config, split) for config, parts in tables.items() for split in parts]


def test_what_works(served):
    answer = ask(served, "/is-valid")
    assert answer.json() == dict.fromkeys(
        ["viewer", "preview", "search", "filter", "statistics"], True
    )
    assert len(answer.headers["x-revision"]) == 40


def test_splits_are_parts_of_tables(served, pairs):
    found = ask(served, "/splits").json()
    assert {(s["config"], s["split"]) for s in found["splits"]} == set(pairs)
    assert found["splits"][0]["config"] == "patients"
    one = ask(served, "/splits", config="slices").json()["splits"]
    assert {s["config"] for s in one} == {"slices"}


@pytest.mark.parametrize("table", sorted(TABLES))
def test_features_are_those_of_datasets(table):
    schema = TABLES[table].schema
    ours = {field.name: feature(field.type) for field in schema}
    assert ours == Features.from_arrow_schema(schema).to_dict()


def test_info_is_what_datasets_takes(served, dataset, pairs):
    found = ask(served, "/info").json()
    assert (found["pending"], found["failed"], found["partial"]) == ([], [], False)
    for name, described in found["dataset_info"].items():
        info = DatasetInfo.from_dict(described)
        assert set(info.splits) == {split for config, split in pairs if config == name}
        for split in info.splits.values():
            table = table_of(dataset, name, split.name)
            assert split.num_examples == table.num_rows
            assert info.features == Features.from_arrow_schema(table.schema)
    alone = ask(served, "/info", config="patients").json()
    assert alone["dataset_info"] == found["dataset_info"]["patients"]


def test_the_client_in_datasets_reads_info_and_parquet(served, monkeypatch):
    """Unmodified, where the operator gives the service the name that clients ask."""
    monkeypatch.setattr(config, "HF_ENDPOINT", served.url.replace("127.0.0.1", "hub.test"))
    resolve = socket.getaddrinfo

    def local(host, *arguments, **more):
        known = host in ("datasets-server.hub.test", b"datasets-server.hub.test")
        return resolve("127.0.0.1" if known else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    sha = ask(served, "/is-valid").headers["x-revision"]
    infos = _dataset_viewer.get_exported_dataset_infos(served.name, sha, served.token)
    assert DatasetInfo.from_dict(infos["patients"]).config_name == "patients"
    files = _dataset_viewer.get_exported_parquet_files(served.name, sha, served.token)
    assert {"patients", "structures"} <= {file["config"] for file in files}
    with pytest.raises(_dataset_viewer.DatasetViewerError):
        _dataset_viewer.get_exported_dataset_infos(served.name, "0" * 40, served.token)


def test_parquet_urls_give_the_files(served, dataset, pairs):
    found = ask(served, "/parquet").json()["parquet_files"]
    assert {(f["config"], f["split"]) for f in found} == set(pairs)
    for file in ask(served, "/parquet", config="patients").json()["parquet_files"]:
        content = httpx.get(file["url"], headers=served.headers).content
        assert len(content) == file["size"]
        assert content == (dataset / "metadata/patients" / file["filename"]).read_bytes()


def test_sizes_add_up(served, dataset):
    found = ask(served, "/size").json()["size"]
    rows = sum(each["num_rows"] for each in found["splits"])
    assert found["dataset"]["num_rows"] == rows == sum(c["num_rows"] for c in found["configs"])
    stored = sum(p.stat().st_size for p in (dataset / "metadata").glob("*/*.parquet"))
    assert found["dataset"]["num_bytes_parquet_files"] == stored
    one = ask(served, "/size", config="slices").json()["size"]
    assert one["config"] in found["configs"]
    assert one["config"]["num_columns"] == len(TABLES["slices"].columns)


def test_rows_are_those_of_the_files(served, dataset, pairs):
    for config_, split in pairs:
        table = table_of(dataset, config_, split)
        page = ask(served, "/rows", config=config_, split=split, offset=1, length=3).json()
        assert page["num_rows_total"] == table.num_rows
        assert [r["row_idx"] for r in page["rows"]] == list(range(1, min(4, table.num_rows)))
        assert [r["row"] for r in page["rows"]] == json.loads(
            json.dumps(table.slice(1, 3).to_pylist())
        )
        assert [f["name"] for f in page["features"]] == table.column_names


def test_a_page_beyond_the_end_is_empty(served):
    page = ask(served, "/rows", config="patients", split="base", offset=10**9).json()
    assert (page["rows"], page["num_rows_total"]) == ([], 3)


def test_the_first_rows_keep_to_their_bytes(served, dataset, monkeypatch):
    found = ask(served, "/first-rows", config="structures", split="base").json()
    assert len(found["rows"]) == table_of(dataset, "structures", "base").num_rows
    assert not found["truncated"]
    monkeypatch.setattr(viewer, "_FIRST_BYTES", 10_000)
    cut = ask(served, "/first-rows", config="structures", split="base").json()
    assert cut["truncated"]
    assert cut["rows"] == found["rows"][: len(cut["rows"])]
    assert 5_000 < len(json.dumps(cut["rows"], separators=(",", ":"))) < 10_100


@pytest.mark.parametrize(
    "predicate",
    ["protocol = 'newAcq'", "Rectum.volume_cc > 0 AND n_fiducials >= 2", "\"part\" <> 'extended'"],
)
def test_filter_takes_our_predicates(served, dataset, predicate):
    expected = open_cohort(dataset).where(predicate)
    found = [
        row["row"]["patient_id"]
        for split in ("base", "extended")
        for row in ask(served, "/filter", config="patients", split=split, where=predicate).json()[
            "rows"
        ]
    ]
    assert sorted(found) == sorted(expected.ids)


def test_filter_takes_conditions_on_other_tables(served, dataset):
    where = "structure = 'Rectum' AND grid = 'mri' AND volume_cc > 0"
    page = ask(served, "/filter", config="structures", split="base", where=where, length=2).json()
    table = table_of(dataset, "structures", "base").to_pylist()
    matching = [n for n, r in enumerate(table) if r["structure"] == "Rectum" and r["grid"] == "mri"]
    assert page["num_rows_total"] == len(matching)
    assert [row["row_idx"] for row in page["rows"]] == matching[:2]
    unbounded = ask(
        served, "/filter", config="structures", split="base", where="structure LIKE 'Rect%'"
    )
    assert unbounded.json()["num_rows_total"] == 6


def test_filter_orders_by_a_column(served):
    query = {"config": "structures", "split": "base", "where": "volume_cc > 0"}
    page = ask(served, "/filter", **query, orderby="volume_cc DESC").json()
    volumes = [row["row"]["volume_cc"] for row in page["rows"]]
    assert volumes == sorted(volumes, reverse=True)
    ask(served, "/filter", 422, **query, orderby="volume_c")
    ask(served, "/filter", 422, **query, orderby="centroid_mm")


def test_search_finds_words_in_texts_and_lists(served, dataset):
    table = table_of(dataset, "structures", "base").to_pylist()
    page = ask(served, "/search", config="structures", split="base", query="RECT sct").json()
    assert [row["row_idx"] for row in page["rows"]] == [
        n for n, r in enumerate(table) if r["structure"] == "Rectum" and r["grid"] == "sct"
    ]
    patients = table_of(dataset, "patients", "base").to_pylist()
    finding = next((f for p in patients for f in p["missing_structures"]), None)
    assert finding is not None
    page = ask(served, "/search", config="patients", split="base", query=finding).json()
    assert page["num_rows_total"] == sum(finding in p["missing_structures"] for p in patients)
    none = ask(served, "/search", config="patients", split="base", query="xyzzy").json()
    assert (none["rows"], none["num_rows_total"]) == ([], 0)


def statistics_of(values, kind=None):
    return column_statistics("x", pa.chunked_array([pa.array(values, kind)]))


def test_statistics_of_numbers_are_those_of_the_public_viewer():
    """Its documentation's example: the numbers 0 to 8550."""
    found = statistics_of(range(8551))
    assert found["column_type"] == "int"
    assert found["column_statistics"] == {
        "nan_count": 0,
        "nan_proportion": 0.0,
        "min": 0,
        "max": 8550,
        "mean": 4275.0,
        "median": 4275.0,
        "std": 2468.60541,
        "histogram": {
            "hist": [856] * 9 + [847],
            "bin_edges": [0, 856, 1712, 2568, 3424, 4280, 5136, 5992, 6848, 7704, 8550],
        },
    }


def test_statistics_of_other_types():
    lists = statistics_of([[1]] * 5 + [[1, 2]] * 3 + [[1, 2, 3], None])
    assert lists["column_type"] == "list"
    assert lists["column_statistics"]["histogram"] == {"hist": [5, 3, 1], "bin_edges": [1, 2, 3, 3]}
    assert lists["column_statistics"]["nan_proportion"] == 0.1
    numbers = statistics_of([0.0, 1.0, math.nan, math.inf, None])["column_statistics"]
    assert (numbers["nan_count"], numbers["min"], numbers["max"]) == (3, 0.0, 1.0)
    assert numbers["histogram"]["bin_edges"][1] == 0.1
    truth = statistics_of([True, False, True, None])
    assert truth["column_statistics"]["frequencies"] == {"True": 2, "False": 1}
    labels = statistics_of(["a", "b", "a"])
    assert labels["column_type"] == "string_label"
    assert labels["column_statistics"]["frequencies"] == {"a": 2, "b": 1}
    texts = statistics_of([f"patient {n}" for n in range(20)])
    assert texts["column_type"] == "string_text"
    assert texts["column_statistics"]["min"] == 9
    nothing = statistics_of([None, None], pa.float64())["column_statistics"]
    assert (nothing["nan_count"], nothing["histogram"]) == (2, None)
    assert statistics_of([{"a": 1}]) is None
    triples = statistics_of([[1, 2, 3]], pa.list_(pa.int64(), 3))
    assert triples["column_statistics"]["histogram"] == {"hist": [1], "bin_edges": [3, 3]}


def test_statistics_of_a_split(served, dataset):
    found = ask(served, "/statistics", config="structures", split="base").json()
    table = table_of(dataset, "structures", "base")
    assert found["num_examples"] == table.num_rows
    by_name = {each["column_name"]: each for each in found["statistics"]}
    assert set(by_name) == set(table.column_names)
    volumes = table.column("volume_cc").to_numpy()
    assert by_name["volume_cc"]["column_statistics"]["mean"] == round(np.mean(volumes), 5)
    assert sum(by_name["volume_cc"]["column_statistics"]["histogram"]["hist"]) == table.num_rows


def test_croissant_is_the_datasets_own(served, dataset):
    expected = json.loads((dataset / "croissant.json").read_text())
    assert ask(served, "/croissant").json() == expected


@pytest.mark.parametrize(
    ("path", "query", "status", "code", "said"),
    [
        ("/splits", {"dataset": None}, 422, "MissingRequiredParameter", "'dataset' is required"),
        ("/splits", {"dataset": "no/such"}, 404, "RepoNotFound", "no/such"),
        ("/splits", {"config": "patient"}, 404, "ConfigNotFound", "nearest: patients"),
        ("/rows", {}, 422, "MissingRequiredParameter", "'config' is required"),
        ("/rows", {"config": "patients"}, 422, "MissingRequiredParameter", "'split'"),
        ("/rows", {"config": "slcies", "split": "base"}, 404, "ConfigNotFound", "slices"),
        ("/rows", {"config": "slices", "split": "bsae"}, 404, "SplitNotFound", "nearest: base"),
        ("/rows", {"lenght": "3"}, 422, "InvalidParameter", "nearest: length"),
        ("/rows", {"length": "101"}, 422, "InvalidParameter", "must not exceed 100"),
        ("/rows", {"offset": "-1"}, 422, "InvalidParameter", "expected a whole number"),
        ("/rows", {"offset": "٣"}, 422, "InvalidParameter", "expected a whole number"),
        ("/rows", {"offset": "9" * 30}, 422, "InvalidParameter", "expected a whole number"),
        ("/filter", {"where": "protocl = 'x'"}, 422, "InvalidQuery", "nearest: protocol"),
        ("/filter", {"where": "protocol = 'newAc'"}, 422, "InvalidQuery", "nearest: newAcq"),
        ("/filter", {"where": "true; SELECT 1"}, 422, "InvalidQuery", "expected one SELECT"),
        ("/filter", {"where": " "}, 422, "InvalidParameter", "not blank"),
        ("/search", {"query": "a " * 20}, 422, "InvalidParameter", "at most 16"),
    ],
)
def test_bad_requests_say_what_is_wrong(served, path, query, status, code, said):
    if code in ("InvalidParameter", "InvalidQuery"):
        query = {"config": "patients", "split": "base", **query}
    answer = ask(served, path, status, **query)
    assert answer.headers["x-error-code"] == code
    assert said in answer.json()["error"]


def test_a_parameter_twice_and_another_method(served):
    with served.client as client:
        twice = client.get(f"/splits?dataset={served.name}&dataset=a/b")
        assert (twice.status_code, "more than once" in twice.text) == (422, True)
        wrong = client.post("/splits")
    assert wrong.status_code == 405
    assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_nothing_without_a_token(served):
    for path in ("/rows", "/info", "/statistics"):
        answer = httpx.get(f"{served.url}{path}?dataset={served.name}&config=patients&split=base")
        assert answer.status_code == 401


def test_the_audit_log_says_what_was_read(served):
    ask(served, "/filter", config="patients", split="base", where="n_fiducials = 3")
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert line["sql"] == "n_fiducials = 3"
    assert line["path"] == "metadata/patients/base-00000.parquet"
    assert (line["dataset"], len(line["sha"])) == (served.name, 40)
