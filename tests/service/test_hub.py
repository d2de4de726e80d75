"""The Hub's API: what it says, to whom, and what it refuses."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping

import httpx
import pytest

from lundprobe_zarr import open_cohort
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.service.access.callers import Caller, Kind, bad_credentials, bearer
from lundprobe_zarr.service.datasets.index import File, Index, blob_id, pointer_id
from lundprobe_zarr.service.datasets.repository import Repository, front_matter
from lundprobe_zarr.storage.location import Location

API = "/api/datasets/lund-probe/standard"
ZIPPED = {"Accept-Encoding": "gzip"}


@pytest.fixture
def hub(served):
    with served.client as client:
        yield client


@pytest.fixture
def sha(hub):
    return hub.get(API).json()["sha"]


def code(answer):
    return answer.status_code, answer.headers.get("x-error-code")


def test_who_the_token_is_of(hub):
    said = hub.get("/api/whoami-v2").json()
    assert (said["type"], said["name"], said["orgs"]) == ("user", "start-token", [])
    assert said["auth"]["accessToken"]["role"] == "read"


def test_the_one_path_that_clients_ask_without_a_token(served):
    answer = httpx.get(f"{served.url}/api/agent-harnesses")
    assert answer.json() == {"standardEnvVars": [], "harnesses": {}}


def test_a_dataset_is_described_as_the_hub_does(hub, dataset):
    said = hub.get(API).json()
    assert said["id"] == "lund-probe/standard"
    assert said["private"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", said["lastModified"])
    assert said["cardData"]["configs"][0]["config_name"] == "patients"
    assert {"license:other", "task_categories:image-segmentation", "zarr"} <= set(said["tags"])
    assert {"rfilename": "lundprobe.json"} in said["siblings"]
    assert not [s for s in said["siblings"] if s["rfilename"].startswith(".")]
    main = hub.get(f"{API}/revision/refs%2Fheads%2Fmain", params={"blobs": "true"}).json()
    (readme,) = (s for s in main["siblings"] if s["rfilename"] == "README.md")
    text = (dataset / "README.md").read_bytes()
    assert readme == {"rfilename": "README.md", "size": len(text), "blobId": blob_id(text)}


def test_a_description_of_chosen_fields(hub, sha):
    chosen = hub.get(API, params={"expand": ["sha", "tags"]}).json()
    assert set(chosen) == {"_id", "id", "sha", "tags"}
    assert hub.get(API, params={"expand[]": "siblings"}).json()["siblings"]


def test_json_is_compressed_where_that_is_worth_it(hub):
    with hub.stream("GET", API, headers=ZIPPED) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"]
    assert json.loads(gzip.decompress(raw)) == hub.get(API).json()
    plain = hub.get(f"{API}/refs", headers=ZIPPED)
    assert "content-encoding" not in plain.headers


def test_datasets_are_searched(hub):
    def ids(**given):
        return [d["id"] for d in hub.get("/api/datasets", params=given).json()]

    name = "lund-probe/standard"
    assert ids() == ids(author="lund-probe") == ids(search="STANDARD") == [name]
    assert ids(filter="zarr") == ids(filter=["zarr", "license:other"]) == ids(limit=1) == [name]
    assert ids(author="lund") == ids(search="compact") == ids(filter="x") == ids(limit=0) == []
    (full,) = hub.get("/api/datasets", params={"full": "True"}).json()
    assert full["siblings"]


def test_a_folder_is_listed(hub, dataset, sha):
    listed = {e["path"]: e for e in hub.get(f"{API}/tree/{sha}").json()}
    text = (dataset / "README.md").read_bytes()
    readme = {"type": "file", "oid": blob_id(text), "size": len(text), "path": "README.md"}
    assert listed["README.md"] == readme
    assert listed["patients"]["type"] == "directory"
    assert len(listed["patients"]["oid"]) == 40
    below = hub.get(f"{API}/tree/main/metadata%2Fpatients", params={"expand": "true"}).json()
    assert below[0]["path"] == "metadata/patients/base-00000.parquet"
    assert below[0]["lastCommit"]["id"] == sha
    assert below == hub.get(f"{API}/tree/main/metadata/patients/?expand=1").json()


def test_a_shard_is_a_large_file(hub, dataset):
    entries = hub.get(f"{API}/tree/main?recursive=true").json()
    (shard, *_) = (e for e in entries if "lfs" in e)
    text = (dataset / shard["path"]).read_bytes()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{shard['lfs']['oid']}\n"
        f"size {len(text)}\n"
    ).encode()
    assert shard["oid"] == blob_id(pointer)
    assert shard["lfs"]["size"] == shard["size"] == len(text)
    assert shard["lfs"]["pointerSize"] == len(pointer)


@pytest.mark.parametrize("recursive", [True, False])
def test_pages_of_a_tree_make_the_whole(hub, served, sha, recursive):
    flag = str(recursive).lower()
    whole = hub.get(f"{API}/tree/main/metadata?recursive={flag}").json()
    pages, at = [], f"{served.url}{API}/tree/main/metadata?recursive={flag}&limit=2"
    while at:
        # Links are of the public URL, whatever a request calls its host: the token goes there.
        answer = hub.get(at, headers={"Host": "elsewhere.example"})
        pages.append(answer.json())
        at = answer.links.get("next", {}).get("url")
        assert at is None or at.startswith(f"{served.url}{API}/tree/{sha}/metadata?")
    assert [entry for page in pages for entry in page] == whole
    assert {len(page) for page in pages[:-1]} == {2}


def test_a_page_has_a_thousand_entries(hub):
    answer = hub.get(f"{API}/tree/main?recursive=true&limit=5000")
    assert len(answer.json()) == 1000
    assert "cursor=1000" in answer.links["next"]["url"]


def test_paths_are_described_and_what_is_absent_left_out(hub, dataset, sha):
    asked = ["README.md", "patients", "nothing", "README.md", "", "../x"]
    form = hub.post(f"{API}/paths-info/main", data={"paths": asked, "expand": "true"})
    assert [e["path"] for e in form.json()] == ["README.md", "patients"]
    assert form.json()[0]["lastCommit"]["id"] == sha
    as_json = hub.post(f"{API}/paths-info/{sha}", json={"paths": asked}).json()
    assert [(e["path"], e["type"]) for e in as_json] == [
        ("README.md", "file"),
        ("patients", "directory"),
    ]
    assert hub.post(f"{API}/paths-info/main", data={}).json() == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"paths": 3}', b'{"paths": [3]}', b"[" * 100_000, b"\xff"]
)
def test_a_body_that_is_no_list_of_paths(hub, body):
    headers = {"Content-Type": "application/json"}
    answer = hub.post(f"{API}/paths-info/main", content=body, headers=headers)
    assert answer.status_code == 400
    assert "README.md" in answer.json()["error"]


def test_a_body_that_is_too_large(hub):
    assert hub.post(f"{API}/paths-info/main", content=b"x" * 1_100_000).status_code == 413


def test_refs_commits_and_the_check_of_access(hub, sha):
    (branch,) = hub.get(f"{API}/refs").json()["branches"]
    assert branch == {"name": "main", "ref": "refs/heads/main", "targetCommit": sha}
    (commit,) = hub.get(f"{API}/commits/main").json()
    assert (commit["id"], commit["authors"]) == (sha, [{"user": "lund-probe"}])
    assert hub.get(f"{API}/auth-check").status_code == 200


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/api/datasets/lund-probe/other", (404, "RepoNotFound")),
        ("/api/datasets/lund-probe/other/tree/main", (404, "RepoNotFound")),
        (f"{API}/revision/v1", (404, "RevisionNotFound")),
        (f"{API}/revision/{'0' * 40}", (404, "RevisionNotFound")),
        (f"{API}/tree/main/nothing", (404, "EntryNotFound")),
        (f"{API}/tree/main/README.md", (404, "EntryNotFound")),
        (f"{API}/tree/main/..%2F..", (404, "EntryNotFound")),
        (f"{API}/tree/main/.conversion", (404, "EntryNotFound")),
        (f"{API}/tree/main?cursor=-1", (400, None)),
        (f"{API}/tree/main?cursor=%C2%B2", (400, None)),
        (f"{API}/tree/main?limit=x", (400, None)),
        ("/api/datasets?limit=1e9", (400, None)),
        ("/api/models/lund-probe/standard", (404, "RepoNotFound")),
        ("/api/models/lund-probe/standard/revision/main", (404, "RepoNotFound")),
        ("/api/spaces/a/b", (404, "RepoNotFound")),
        ("/lund-probe/standard/resolve/main/README.md", (404, "RepoNotFound")),
        ("/api/datasets/lund-probe%2Fstandard/tree/main", (404, "RepoNotFound")),
    ],
)
def test_errors_carry_the_hubs_codes(hub, path, found):
    answer = hub.get(path)
    assert code(answer) == found
    assert answer.headers["x-error-message"]
    assert answer.json()["error"]


def test_a_page_beyond_the_end_is_empty(hub):
    answer = hub.get(f"{API}/tree/main?recursive=true&cursor=999999999")
    assert answer.json() == []
    assert "link" not in answer.headers


@pytest.mark.parametrize(
    "path", [f"{API}/preupload/main", f"{API}/commit/main", "/api/repos/create"]
)
def test_nothing_can_be_written(hub, path):
    answer = hub.post(path, json={})
    assert answer.status_code == 403
    assert "read-only" in answer.headers["x-error-message"]


def test_a_bad_token_is_called_what_clients_know(served):
    """Clients compare the header's whole text; what else is said stands in the body."""
    known = "Invalid credentials in Authorization header"
    answer = httpx.get(f"{served.url}{API}", headers={"Authorization": "Bearer lp_x"})
    assert code(answer) == (401, None)
    assert answer.headers["x-error-message"] == known
    told = bad_credentials("this token has expired").response()
    assert told.headers["x-error-message"] == known
    assert b"expired" in told.body


class TokensByName:
    """Access for tests: a token is its caller's name."""

    def __init__(self, *callers: Caller) -> None:
        self._callers = {caller.name: caller for caller in callers}

    def caller(self, headers: Mapping[bytes, bytes], peer: str) -> Caller | None:
        token = bearer(headers)
        if token is None:
            return None
        if token not in self._callers:
            raise bad_credentials()
        return self._callers[token]


@pytest.fixture(scope="module")
def shared(start_for_module, dataset):
    """A service of two datasets, with a token for each, and one for tables alone."""
    found = start_for_module({"lund-probe/one": dataset, "lund-probe/two": dataset})
    found.app._service.access = TokensByName(
        Caller("reader-1", frozenset({"lund-probe/one"})),
        Caller("bo", frozenset({"lund-probe/two"})),
        Caller("tables", frozenset({"lund-probe/one"}), frozenset({Kind.TABLES})),
        Caller("anyone", is_known=False),
    )
    return found


def ask(shared, path, token, method="GET"):
    return httpx.request(method, shared.url + path, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(
    "path",
    [
        "/api/datasets/lund-probe/two",
        "/api/datasets/lund-probe/two/revision/main",
        "/api/datasets/lund-probe/two/tree/main",
        "/api/datasets/lund-probe/two/refs",
        "/api/datasets/lund-probe/two/commits/main",
        "/api/datasets/lund-probe/two/auth-check",
        "/datasets/lund-probe/two/resolve/main/README.md",
    ],
)
def test_without_a_grant_it_is_said_how_to_apply(shared, path):
    answer = ask(shared, path, "reader-1")
    assert code(answer) == (403, "GatedRepo")
    assert "no access terms apply" in answer.json()["error"]
    assert "patients" not in answer.text
    assert ask(shared, path, "bo").status_code == 200
    assert code(httpx.get(shared.url + path)) == (401, "GatedRepo")


def test_each_caller_sees_their_datasets(shared):
    def listed(token):
        return [d["id"] for d in ask(shared, "/api/datasets", token).json()]

    assert listed("reader-1") == listed("tables") == ["lund-probe/one"]
    assert listed("bo") == ["lund-probe/two"]


def test_a_token_for_tables_gets_no_voxels(shared, dataset):
    entries = ask(shared, "/api/datasets/lund-probe/one/tree/main?recursive=1", "tables").json()
    paths = [e["path"] for e in entries if e["type"] == "file"]
    for path in (next(p for p in paths if p.endswith("/zarr.json")), "metadata/patients.parquet"):
        answer = ask(shared, f"/datasets/lund-probe/one/resolve/main/{path}", "tables", "HEAD")
        assert code(answer) == ((200, None) if path.startswith("meta") else (403, "GatedRepo"))


def test_nobody_is_known_by_name_where_all_may_come_in(shared):
    assert ask(shared, "/api/whoami-v2", "anyone").status_code == 401


def test_the_audit_log_names_dataset_revision_and_caller(shared):
    ask(shared, "/api/datasets/lund-probe/two/tree/main/metadata", "bo")
    line = json.loads(shared.audit.read_text().splitlines()[-1])
    assert (line["caller"], line["dataset"], line["path"]) == ("bo", "lund-probe/two", "metadata")
    assert len(line["sha"]) == 40


@pytest.fixture
def manifest(dataset):
    return open_manifest(Location(dataset))


def repository(manifest, files, card=b""):
    return Repository("o/n", manifest, Index("0" * 64, files), card)


def test_folders_have_the_ids_that_git_gives_them(manifest):
    empty = blob_id(b"")
    assert empty == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    names = ("a/b", "a-b", "a.c/d/e", "a0")
    files = [File(name, 0, empty, None, "") for name in names]
    made = repository(manifest, files)
    # `git write-tree` of the same files.
    assert made.entry("a.c")["oid"] == "ca05bc32d5a6c5587aa7dff0e85995512cdecef3"
    assert made._tree_ids[""] == "fa0161608ec0d5a61c5bd8fc9790519382ee02e3"


def test_a_dataset_of_full_size_is_described_in_little_time(manifest):
    """87,000 entries: what is said of them is made once, and listed a thousand at a time."""
    files = [
        File(f"patients/newAcq_{n:016x}.zarr/mri/c/{m}", n, pointer_id("0" * 64, n), "0" * 64, "")
        for n in range(467)
        for m in range(184)
    ]
    made = repository(manifest, files)
    assert len(json.loads(made.info.text)["siblings"]) == len(files)
    assert made.info is made.info
    assert len(made.info.zipped) < len(made.info.text) / 10
    start, seen = 0, 0
    while start is not None:
        page = made.listing("", True, False, start, 1000)
        seen, start = seen + len(page.entries), page.rest
    assert seen == len(files) + 1 + 3 * 467


@pytest.mark.parametrize(
    ("card", "found"),
    [
        (b"", {}),
        (b"# A dataset", {}),
        (b"---\na: [1\n---\n", {}),
        (b"---\n- a\n---\n", {}),
        (b"---\r\npretty_name: x\r\n---\r\n", {"pretty_name": "x"}),
        (b"---\nday: 2026-01-02\n2026-01-02: x\n---\n", {"day": "2026-01-02"}),
    ],
)
def test_the_front_matter_of_a_card(card, found):
    assert front_matter(card) == found


def test_times_that_are_none(manifest):
    odd = manifest.model_copy(update={"created": "yesterday"})
    assert repository(odd, []).time == "1970-01-01T00:00:00.000000Z"
    local = manifest.model_copy(update={"created": "2026-01-02T03:04:05+02:00"})
    assert repository(local, []).time == "2026-01-02T01:04:05.000000Z"


def test_a_service_follows_what_is_replaced(copied, start_service):
    """The old revision is then unknown; nothing is mixed."""
    found = start_service({"lund-probe/standard": copied})
    with found.client as client:
        before = client.get(API).json()
        manifest = open_manifest(Location(copied))
        renamed = manifest.model_copy(update={"name": "Another"})
        (copied / "lundprobe.json").write_text(renamed.dump())
        found.app._service.published["lund-probe/standard"].refresh()
        after = client.get(API).json()
        assert after["sha"] != before["sha"]
        assert open_cohort(copied).manifest.name == "Another"
        gone = client.get(f"{API}/tree/{before['sha']}?recursive=true&cursor=1")
        assert code(gone) == (404, "RevisionNotFound")
