"""Our own reader of `hf://datasets/owner/name`, and of the same by plain HTTP."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pandas as pd
import pytest
import zarr

import lundprobe_zarr as lp
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import DatasetError, NotADatasetError, UsageError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.failures import public_options
from lundprobe_zarr.storage.hub import HubFiles
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.stores.reader import StoreReader

URL = "hf://datasets/lund-probe/standard"
BOX = (slice(2, 9), slice(5, 30), slice(7, 40))
VOLUMES = [("mri/image", {"modality": m}) for m in ("T2w", "sCT")]


@pytest.fixture
def hub(served, monkeypatch):
    """The service as the environment names it to Hugging Face's tools."""
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", served.token)
    return served


@pytest.fixture
def by_address(served):
    """The same dataset by plain HTTP: its URL, and the options to open it with."""
    return f"{served.url}/datasets/{served.name}/resolve/main", {"headers": served.headers}


@contextmanager
def asked(served):
    """The lines that the audit log gains meanwhile."""
    served.audit.touch()
    before, lines = len(served.audit.read_text().splitlines()), []
    yield lines
    lines += map(json.loads, served.audit.read_text().splitlines()[before:])


def test_a_cohort_is_opened_by_its_name_alone(hub, dataset):
    with asked(hub) as lines:
        cohort = lp.open_cohort(URL)
        assert len(cohort.where("protocol = 'newAcq'")) < len(cohort)
    # Which revision, the manifest, and one table.
    assert [(line["method"], line["path"]) for line in lines] == [
        ("HEAD", ".gitattributes"),
        ("GET", "lundprobe.json"),
        ("GET", "metadata/patients.parquet"),
    ]
    assert {len(line["route"].split("/resolve/")[1].split("/")[0]) for line in lines[1:]} == {40}
    pd.testing.assert_frame_equal(cohort.patients, lp.open_cohort(dataset).patients)


def test_a_patch_reads_ranges_and_no_more(hub, dataset):
    patient = lp.open_cohort(dataset).ids[0]
    expected = StoreReader.open(Location(dataset), patient).read(VOLUMES, BOX)
    location = Location(URL)
    reader = StoreReader.open(location, patient)
    with asked(hub) as lines:
        found = reader.read(VOLUMES, BOX)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert {line["status"] for line in lines} == {206}
    assert len(lines) <= 4
    tree = lp.open_cohort(URL)[patient].tree
    voxels = tree["mri/image"].sel(modality="T2w")[BOX].values
    np.testing.assert_array_equal(voxels, expected[0])


def test_what_else_reads_a_dataset(hub, dataset):
    here = lp.open_cohort(dataset)
    rows = lp.load_dataset(URL, "patients", split="base", streaming=True)
    assert [row["patient_id"] for row in rows] == list(here.where("part = 'base'").ids)
    options = {"patch_size": (4, 16, 16), "seed": 3}
    patches = list(lp.PatchStream(lp.open_cohort(URL), **options))
    expected = list(lp.PatchStream(here, **options))
    assert len(patches) == len(expected) > 0
    np.testing.assert_array_equal(patches[-1]["image"], expected[-1]["image"])


def test_a_folder_can_be_listed_and_copied_from(hub, dataset, tmp_path):
    there, here = Location(URL), Location(dataset)
    served = {n: s for n, s in here.find("").items() if not n.startswith(".conversion/")}
    assert there.find("") == served
    assert {"README.md", "patients"} <= set(there.children(""))
    assert all(entry.stamp for entry in there.listing("metadata").values())
    assert not copy_dataset(there, Location(tmp_path / "copy")).failures
    copied = Location(tmp_path / "copy").find("")
    assert {n: s for n, s in copied.items() if not n.startswith(".conversion/")} == served
    store = zarr.open_group(
        there.zarr_store(f"patients/{lp.open_cohort(URL).ids[0]}.zarr"), mode="r"
    )
    assert "mri" in store


def test_listings_go_on_page_after_page(hub, monkeypatch):
    from lundprobe_zarr.service.hub import api

    whole = Location(URL).find("")
    monkeypatch.setattr(api, "_MOST_ENTRIES", 60)
    assert Location(URL).find("") == whole


def test_nothing_can_be_written(hub, dataset):
    with pytest.raises(UsageError, match="a dataset of a Hub cannot be written to"):
        Location(URL).write("x", b"x")


@pytest.mark.parametrize(
    ("url", "options", "kind", "said"),
    [
        (URL, {"token": False}, DatasetError, "no access terms apply.*HF_TOKEN"),
        (URL, {"token": "lp_wrong"}, DatasetError, "the server says: Invalid credentials"),
        ("hf://datasets/lund-probe/other", {}, DatasetError, "no such dataset.*check its name"),
        (f"{URL}@v1", {}, DatasetError, "does not have this revision"),
        (f"{URL}@{'0' * 40}", {}, DatasetError, "open the dataset again"),
        (f"{URL}/patients", {}, NotADatasetError, "not there"),
        ("hf://lund-probe/standard", {}, UsageError, "expected hf://datasets/OWNER/NAME"),
        ("hf://datasets/standard", {}, UsageError, "expected hf://datasets/OWNER/NAME"),
        (URL, {"nonsense": 1}, UsageError, "storage options that hf takes"),
        (URL, {"endpoint": "http://127.0.0.1:9"}, DatasetError, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_said(hub, url, options, kind, said):
    with pytest.raises(kind) as raised:
        lp.open_cohort(url, options)
    text = str(raised.value)
    assert all(part in text for part in said.split(".*")), text
    assert hub.token not in text
    assert "lp_wrong" not in text


def test_a_service_that_fails_for_a_moment_is_asked_again(hub, monkeypatch):
    from lundprobe_zarr.service.http.answers import HttpError
    from lundprobe_zarr.service.hub import content

    failed = []
    read = content._read_cached

    def fail(fd, start, size):
        if not failed:
            failed.append(start)
            raise HttpError(503, "a moment")
        return read(fd, start, size)

    monkeypatch.setattr(content, "_read_cached", fail)
    assert Location(URL).read("lundprobe.json")
    assert failed


def test_by_plain_http_with_a_header(by_address, dataset):
    url, options = by_address
    cohort = lp.open_cohort(url, options)
    pd.testing.assert_frame_equal(cohort.patients, lp.open_cohort(dataset).patients)
    with pytest.raises(DatasetError, match=r"access denied.*storage_options.*headers"):
        lp.open_cohort(url)


def test_by_plain_http_no_token_of_the_environment_is_sent(by_address, served, monkeypatch):
    """It is for HF_ENDPOINT, and this may be any server."""
    monkeypatch.setenv("HF_TOKEN", served.token)
    with pytest.raises(DatasetError, match="access denied"):
        lp.open_cohort(by_address[0])


def test_other_readers_by_plain_http(by_address, served, dataset):
    url, _ = by_address
    fs = fsspec.filesystem("http", client_kwargs={"headers": served.headers})
    table = pd.read_parquet(
        f"{url}/metadata/patients.parquet",
        storage_options=served.headers,
    )
    assert list(table.patient_id) == list(lp.open_cohort(dataset).ids)
    assert fs.cat_file(f"{url}/README.md", 4, 11) == (dataset / "README.md").read_bytes()[4:11]
    with fs.open(f"{url}/metadata/patients.parquet") as file:  # as DuckDB reads through fsspec
        file.seek(-4, 2)
        assert file.read() == b"PAR1"


@pytest.fixture
def replaceable(copied, start_service, monkeypatch):
    """A service of a copy of the dataset, and a function that replaces it."""
    found = start_service({"lund-probe/standard": copied})
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_TOKEN", found.token)

    def replace() -> None:
        manifest = open_manifest(Location(copied))
        (copied / "lundprobe.json").write_text(manifest.model_copy(update={"name": "New"}).dump())
        found.app._service.published["lund-probe/standard"].refresh()

    return found, replace


def read_in_child(location, connection):
    try:
        connection.send(location.read("README.md")[:3])
    except DatasetError as error:
        connection.send(str(error))


def in_child(method, location):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=read_in_child, args=(location, theirs))
    process.start()
    answer = ours.recv() if ours.poll(60) else "no answer"
    process.join(20)
    return answer


@pytest.mark.parametrize("way", ["hub", "address"])
def test_a_dataset_that_is_replaced_while_it_is_open_is_an_error(replaceable, way):
    served, replace = replaceable
    if way == "hub":
        url, options = URL, {}
    else:
        url = f"{served.url}/datasets/{served.name}/resolve/main"
        options = {"headers": served.headers}
    cohort = lp.open_cohort(url, options)
    patient = cohort[0]
    tree = patient.tree
    kept = pickle.dumps(cohort.location)
    store = cohort.location.zarr_store("patients")
    replace()
    for read in (
        lambda: cohort.sql("SELECT count(*) FROM structures"),
        lambda: tree["mri/image"][0, 1, 2:5, 2:5].values,
        lambda: cohort.location.read_ranges([Range("README.md", 0, 5)]),
        lambda: pickle.loads(kept).read("README.md"),
    ):
        with pytest.raises(DatasetError, match="replaced since it was opened"):
            read()
    assert store.fs.encode_url("x").parts[-2] != "main"
    again = lp.open_cohort(url, options)
    assert again.manifest.name == "New"
    assert len(again) == len(cohort)


def test_a_forked_process_reads_the_same_revision(replaceable):
    _, replace = replaceable
    location = Location(URL)
    assert location.read("README.md")
    assert in_child("fork", location) == b"---"
    replace()
    assert "replaced since" in in_child("fork", location)


def test_a_token_is_in_no_text_and_no_pickle(hub):
    cohort = lp.open_cohort(URL)
    token = hub.token.encode()
    assert token not in pickle.dumps(cohort)
    assert token not in pickle.dumps(cohort.location.zarr_store("patients"))
    assert hub.token not in f"{cohort!r} {cohort.location!r} {cohort[0]!r}"
    assert hub.token not in HubFiles("a/b").to_json()
    options = {"token": hub.token, "endpoint": hub.url}
    assert public_options(options) == {"endpoint": hub.url}


class Recorder(BaseHTTPRequestHandler):
    """Answers as it is told, and keeps the headers of each request."""

    seen: list[tuple[str, str, str | None]]
    answers: dict[str, tuple[int, dict[str, str], bytes]]

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        nothing = (404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "c" * 40}, b"")
        status, headers, body = self.answers.get(self.path.partition("?")[0], nothing)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def recorder(answers):
    handler = type("Handler", (Recorder,), {"seen": [], "answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_hub_may_send_to_another_server_which_gets_no_token():
    """As the public one does for large files, and within itself for small ones."""
    commit = "c" * 40
    resolve = f"/datasets/a/b/resolve/{commit}"
    with recorder({"/large": (200, {}, b"0123456789")}) as (far, far_seen):
        answers = {
            f"{resolve}/large": (302, {"Location": f"{far}/large", "X-Repo-Commit": commit}, b""),
            f"{resolve}/small": (307, {"Location": "/cache/small"}, b""),
            "/cache/small": (200, {}, b"small"),
        }
        with recorder(answers) as (near, near_seen):
            location = Location("hf://datasets/a/b", {"endpoint": near, "token": "hf_secret"})
            assert location.read("small") == b"small"
            assert location.read("large") == b"0123456789"
            assert near_seen[0][:2] == ("HEAD", "/datasets/a/b/resolve/main/.gitattributes")
            assert {sent for *_, sent in near_seen} == {"Bearer hf_secret"}
            assert far_seen == [("GET", "/large", None)]


def test_a_next_page_on_another_server_is_not_followed():
    with recorder({}) as (far, far_seen):
        listing = "/api/datasets/a/b/tree/" + "c" * 40
        link = {"Link": f'<{far}/next>; rel="next"', "Content-Type": "application/json"}
        with recorder({listing: (200, link, b"[]")}) as (near, _):
            location = Location("hf://datasets/a/b", {"endpoint": near, "token": "hf_secret"})
            with pytest.raises(DatasetError, match="not the requested one"):
                location.find("")
    assert far_seen == []


def test_a_web_server_with_such_a_path_that_is_no_hub(dataset, tmp_path):
    """It says nothing of revisions, and is read as it is."""
    place = "/datasets/a/b/resolve/main"
    text = (dataset / "lundprobe.json").read_bytes()
    answers = {
        f"{place}/lundprobe.json": (200, {}, text),
        f"{place}/.gitattributes": (405, {}, b""),
    }
    with recorder(answers) as (url, seen):
        assert Location(url + place).read("lundprobe.json") == text
    assert [path for _, path, _ in seen][-1] == f"{place}/lundprobe.json"


def test_names_of_revisions_and_files_are_quoted():
    fs = HubFiles("a/b", "refs/pr/1", endpoint="http://hub.example/", token=False)
    assert str(fs.encode_url("datasets/a/b/x y/#1")) == (
        "http://hub.example/datasets/a/b/resolve/refs%2Fpr%2F1/x%20y/%231"
    )
    assert HubFiles._get_kwargs_from_urls("hf://datasets/a/b@refs/pr/1/x") == {
        "repository": "a/b",
        "revision": "refs/pr/1",
    }
    assert HubFiles._get_kwargs_from_urls("hf://datasets/a/b@refs%2Fpr%2F1")["revision"] == (
        "refs/pr/1"
    )
    assert HubFiles._get_kwargs_from_urls("https://h/p/datasets/a/b/resolve/v1/x") == {
        "repository": "a/b",
        "revision": "v1",
        "endpoint": "https://h/p",
        "token": False,
    }
