"""Bytes of files over HTTP: whole, in ranges, with and without a grant."""

from __future__ import annotations

import json

import httpx
import pytest


@pytest.fixture
def shard(served, dataset):
    """Path of the largest file of the dataset, and its bytes."""
    files = [p for p in (dataset / "patients").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    return largest.relative_to(dataset).as_posix(), largest.read_bytes()


def get(served, path, revision="main", **headers):
    with served.client as client:
        url = f"/datasets/{served.name}/resolve/{revision}/{path}"
        return client.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_a_whole_file(served, shard):
    path, contents = shard
    answer = get(served, path)
    assert answer.status_code == 200
    assert answer.content == contents
    assert len(answer.headers["x-repo-commit"]) == 40


@pytest.mark.parametrize(
    ("asked", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-99", (10, 100)),
        ("bytes=-7", (-7, None)),
        ("bytes=100-", (100, None)),
        ("bytes=5-99999999999", (5, None)),
        ("bytes=-99999999999", (0, None)),
    ],
)
def test_a_range(served, shard, asked, span):
    path, contents = shard
    answer = get(served, path, range=asked)
    wanted = contents[span[0] : span[1]]
    assert answer.status_code == 206
    assert answer.content == wanted
    start = contents.index(wanted) if len(wanted) > 20 else int(span[0]) % len(contents)
    place = f"bytes {start}-{start + len(wanted) - 1}/{len(contents)}"
    assert answer.headers["content-range"] == place


@pytest.mark.parametrize("asked", ["bytes=999999999999-", "bytes=-0"])
def test_a_range_beyond_the_end(served, shard, asked):
    path, contents = shard
    answer = get(served, path, range=asked)
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(contents)}"


@pytest.mark.parametrize("asked", ["bytes=5-1", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "x"])
def test_what_is_no_single_range_gives_the_whole_file(served, shard, asked):
    path, contents = shard
    answer = get(served, path, range=asked)
    assert (answer.status_code, answer.content) == (200, contents)


def test_a_revision_by_its_sha_may_be_kept_for_ever_by_its_reader(served, shard):
    path, contents = shard
    sha = get(served, path).headers["x-repo-commit"]
    answer = get(served, path, sha)
    assert answer.content == contents
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["vary"] == "Authorization, Cookie"
    again = get(served, path, sha, if_none_match=answer.headers["etag"])
    assert (again.status_code, again.content) == (304, b"")


def test_unknown_revision_and_file(served):
    gone = get(served, "README.md", "0" * 40)
    assert (gone.status_code, gone.headers["x-error-code"]) == (404, "RevisionNotFound")
    missing = get(served, "dataset_infos.json")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        ".conversion/state.json",
        "patients",
        "metadata/",
        "lundprobe.json%00.md",
        "%ff%fe",
    ],
)
def test_no_path_leads_out(served, path):
    answer = get(served, path)
    assert answer.status_code == 404


def test_nothing_without_a_token(served, shard):
    path, _ = shard
    for headers in ({}, {"Authorization": "Bearer lp_wrong"}, {"Authorization": "Negotiate x"}):
        answer = httpx.get(
            f"{served.url}/datasets/{served.name}/resolve/main/{path}", headers=headers
        )
        assert answer.status_code == 401
        assert len(answer.content) < 1000


def test_the_audit_log_has_a_line_a_request(served, shard):
    path, _ = shard
    get(served, path, range="bytes=3-9")
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert line["path"] == path
    assert line["bytes"] == 7
    assert line["range"] == "3-9"
    assert line["status"] == 206
