"""A dataset that is replaced while it is served: never bytes of another revision."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time

import httpx
import pytest

from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.service.datasets.index import Index
from lundprobe_zarr.service.datasets.published import Published
from lundprobe_zarr.storage.location import Location

NAME = "lund-probe/changing"


def resolve(served, revision, path):
    with served.client as client:
        return client.get(f"/datasets/{NAME}/resolve/{revision}/{path}")


def sha(served):
    return served.app._service.published[NAME].revision.sha


def largest(folder):
    files = [p for p in (folder / "patients").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def test_a_replaced_file_is_refused_before_the_dataset_is_read_again(copied, start_service):
    served = start_service({NAME: copied})
    shard = largest(copied)
    path = shard.relative_to(copied).as_posix()
    assert resolve(served, "main", path).status_code == 200
    contents = shard.read_bytes()
    shard.with_name("new").write_bytes(contents[:-1] + b"x")
    shard.with_name("new").replace(shard)
    refused = resolve(served, sha(served), path)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    shard.unlink()
    assert resolve(served, "main", path).status_code == 503


def test_the_log_says_once_that_a_file_was_replaced(copied, start_service, caplog):
    served = start_service({NAME: copied})
    shard = largest(copied)
    path = shard.relative_to(copied).as_posix()
    first = sha(served)
    shard.write_bytes(shard.read_bytes()[:-1])
    other = copied / "README.md"
    other.write_bytes(other.read_bytes() + b"!")
    for _ in range(3):
        assert resolve(served, first, path).status_code == 503
        assert resolve(served, first, "README.md").status_code == 503
    said = [r.message for r in caplog.records if "being replaced" in r.message]
    assert [m for m in said if path in m] == said[:1]
    assert len(said) == 2
    shutil.rmtree(next(f for f in (copied / "patients").iterdir() if f not in shard.parents))
    shutil.rmtree(next(f for f in (copied / "patients").iterdir() if f in shard.parents))
    finalise(copied, rebuild=True)
    served.app._service.published[NAME].refresh()
    other.write_bytes(b"!")
    assert resolve(served, sha(served), "README.md").status_code == 503
    assert sum("being replaced" in r.message for r in caplog.records) == 3


def test_real_patients_do_not_become_public_by_replacing_a_phantom(copied, start_service, tmp_path):
    served = start_service({NAME: copied}, public=True, synthetic_only=True, token_sha256=None)
    before = sha(served)
    manifest = json.loads((copied / "lundprobe.json").read_bytes())
    manifest["synthetic"] = False
    add_checksum(manifest, manifest)
    (copied / "lundprobe.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="real patients"):
        served.app._service.published[NAME].refresh()
    assert sha(served) == before
    assert httpx.get(f"{served.url}/datasets/{NAME}/resolve/main/lundprobe.json").status_code == 503
    with pytest.raises(UsageError, match="real patients"):
        Published(NAME, Location(str(copied)), tmp_path / "state", synthetic_only=True)


def test_a_new_manifest_is_a_new_revision_and_the_old_one_is_gone(copied, start_service):
    served = start_service({NAME: copied})
    before = sha(served)
    shutil.rmtree(next((copied / "patients").iterdir()))
    finalise(copied, rebuild=True)
    served.app._service.published[NAME].refresh()
    after = sha(served)
    assert after != before
    old = resolve(served, before, "lundprobe.json")
    assert (old.status_code, old.headers["x-error-code"]) == (404, "RevisionNotFound")
    new = resolve(served, after, "lundprobe.json")
    assert new.content == (copied / "lundprobe.json").read_bytes()
    assert open_manifest(Location(copied)).patients["base"] == 2


def test_it_is_noticed_without_being_asked(copied, start_service):
    served = start_service({NAME: copied})
    before = sha(served)
    shutil.rmtree(next((copied / "patients").iterdir()))
    finalise(copied, rebuild=True)
    until = time.monotonic() + 20
    while sha(served) == before and time.monotonic() < until:
        time.sleep(0.1)
    assert sha(served) != before


def test_a_look_that_has_begun_ends_before_following_does(dataset, tmp_path, monkeypatch):
    published = Published(NAME, Location(dataset), tmp_path / "state")
    monkeypatch.setattr("lundprobe_zarr.service.datasets.published._LOOK_SECONDS", 0.01)
    begun, looking, ended = threading.Event(), threading.Event(), threading.Event()

    def look():
        begun.set()
        assert looking.wait(20)
        ended.set()

    monkeypatch.setattr(published, "refresh", look)

    async def followed():
        stopping = asyncio.Event()
        follower = asyncio.create_task(published.follow(stopping))
        await asyncio.to_thread(begun.wait, 20)
        stopping.set()
        done, _ = await asyncio.wait([follower], timeout=0.05)
        assert not done
        looking.set()
        await follower

    asyncio.run(followed())
    assert ended.is_set()


def test_a_restart_has_the_same_revision_and_reads_no_file_for_it(
    start_service, dataset, tmp_path, monkeypatch
):
    state = str(tmp_path / "state")
    first = start_service({NAME: dataset}, state=state)

    def refuse(self, names):
        raise AssertionError("files were read")

    monkeypatch.setattr(Location, "read_each", refuse)
    second = start_service({NAME: dataset}, state=state)
    assert sha(first) == sha(second)


def test_a_damaged_index_is_made_again(start_service, dataset, tmp_path):
    state = tmp_path / "state"
    first = start_service({NAME: dataset}, state=str(state))
    (kept,) = state.glob("index-*.json")
    for text in (b"{", b"[]", b'{"format": 0}', b"\xff"):
        kept.write_bytes(text)
        again = start_service({NAME: dataset}, state=str(state))
        assert sha(again) == sha(first)
    assert Index.load(kept.read_bytes()) is not None


def test_many_stores_that_are_not_there_are_one_line(copied, start_service, caplog):
    gone = sorted((copied / "patients").iterdir())
    for store in gone:
        shutil.rmtree(store)
    served = start_service({NAME: copied})
    assert resolve(served, "main", "lundprobe.json").status_code == 200
    (said,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "the stores of 4 of 4 patients are not served" in said
    assert sum(store.stem in said for store in gone) == 3
    assert said.endswith("; and 1 more")


def test_a_damaged_store_is_left_out(copied, start_service, caplog):
    root = next((copied / "patients").iterdir()) / "zarr.json"
    root.write_text("{")
    served = start_service({NAME: copied})
    path = root.relative_to(copied).as_posix()
    assert resolve(served, "main", path).status_code == 404
    assert root.parent.stem in caplog.text
