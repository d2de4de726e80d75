"""How much is asked of a server, and when: counted by the server itself."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from places import Place
from servers import Request

from lundprobe_zarr import open_cohort
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tree import open_tree

BOX = (slice(2, 9), slice(5, 30), slice(7, 40))
MASKS = ("CTVT_427", "PTVT_427", "Rectum", "Bladder")
VOLUMES = [
    ("mri/image", {"modality": "T2w"}),
    *(("mri/clinical/mask", {"structure": s}) for s in MASKS),
]


@pytest.fixture(params=["web", "s3"])
def remote(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def forbidden(*args: object, **kwargs: object) -> None:
    raise AssertionError("dask computed something")


def test_opening_a_cohort_takes_two_requests(remote, patient_ids):
    with remote.traffic.counted() as asked:
        cohort = open_cohort(remote.url, remote.options)
        assert len(cohort.where("protocol = 'newAcq'")) < len(cohort) == len(patient_ids)
    assert [r.path.rpartition("/")[2] for r in asked] == ["lundprobe.json", "patients.parquet"]


def test_a_table_is_fetched_once_whatever_is_asked_of_it(remote, extended):
    cohort = open_cohort(remote.url, remote.options)
    with remote.traffic.counted() as asked:
        len(cohort.where("Rectum.volume_cc > 0"))
    assert asked
    assert all("/structures/" in r.path for r in asked)
    with remote.traffic.counted() as asked:
        len(cohort.where("Bladder.d95_gy > 0"))
        cohort.sql("SELECT voxels FROM structures")
        assert len(cohort[extended].structures)
    assert asked == []


def test_opening_a_patient_takes_one_request_and_computes_nothing(remote, extended):
    patient = open_cohort(remote.url, remote.options)[extended]
    with remote.traffic.counted() as asked, dask.config.set(scheduler=forbidden):
        tree = patient.tree
        image = tree["mri/image"].sel(modality="T2w", z=slice(None, None, 2))[1:4, 5:9]
        rectum = tree["mri/observers/mask"].sel(structure="Rectum").any("observer") & True
        (image.where(rectum.isel(step=0)).mean(), repr(tree), tree["mri"].nbytes)
    assert [(r.method, r.path.rpartition(".zarr/")[2]) for r in asked] == [("GET", "zarr.json")]
    with dask.config.set(scheduler=forbidden), pytest.raises(AssertionError, match="computed"):
        image.values  # noqa: B018


def names(asked: list[Request]) -> set[str]:
    return {r.path.rpartition(".zarr/")[2] for r in asked}


def test_a_patch_asks_for_indices_then_chunks_and_nothing_else(remote, extended):
    with remote.traffic.counted() as asked:
        reader = StoreReader.open(remote.location, extended)
        first = reader.read(VOLUMES, BOX)
    assert {r.method for r in asked} == {"GET"}
    shards = {n for n in names(asked) if "/c/" in n}
    assert len(shards) == len(VOLUMES)
    assert all(r.range for r in asked if "/c/" in r.path)
    assert sum(r.sent for r in asked if "/c/" in r.path) < 2 * sum(v.nbytes for v in first)
    with remote.traffic.counted() as asked:
        again = reader.read(VOLUMES, BOX)
    assert all("mri/image" in n for n in names(asked)), "small shards are whole in their tail"
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_requests_of_a_round_travel_together(remote, extended):
    """Under latency: metadata, indices, chunks one after another, and all of a round at once."""
    location, traffic = remote.location, remote.traffic
    location.size("lundprobe.json")  # connected
    with traffic.slowed(0.3):
        before = len(traffic.waves)
        reader = StoreReader.open(location, extended)
        reader.read(VOLUMES, BOX)
        first = len(traffic.waves) - before
        reader.read(VOLUMES, (BOX[0], slice(0, 20), slice(0, 20)))
        second = len(traffic.waves) - before - first
    assert first <= 3
    assert second <= 1


def test_chunks_that_lie_apart_are_asked_for_apart(web, extended, monkeypatch):
    from lundprobe_zarr.stores import reader as patch

    monkeypatch.setattr(patch, "INDEX_READ_BYTES", 0)
    reader = StoreReader.open(web.location, extended)
    box = (slice(0, 14), slice(0, 60), slice(0, 60))
    reader.read(VOLUMES[:1], box)
    with web.traffic.counted() as merged:
        whole = reader.read(VOLUMES[:1], box)
    monkeypatch.setattr(patch, "MERGE_GAP", -1)
    with web.traffic.counted() as single:
        apart = reader.read(VOLUMES[:1], box)
    assert len(merged) == 1 < len(single)
    assert sum(r.sent for r in single) <= sum(r.sent for r in merged)
    np.testing.assert_array_equal(whole[0], apart[0])


def test_one_selection_reads_only_its_box(web, extended):
    tree = open_tree(web.location, extended)
    with web.traffic.counted() as asked:
        values = tree["mri/clinical/mask"].isel(structure=0, z=slice(2, 4), y=slice(3, 9)).values
    assert values.shape[:2] == (2, 6)
    assert len(asked) <= 2


def test_many_threads_fetch_an_index_once(web, extended):
    tree = open_tree(web.location, extended)
    with web.traffic.slowed(0.05), web.traffic.counted() as asked:
        tree["mri/image"].sel(modality="T2w").values  # noqa: B018
    ranges = [r.range for r in asked]
    assert len(ranges) == len(set(ranges))


def test_passing_failures_are_tried_again(web, extended, shard):
    reader = StoreReader.open(web.location, extended)
    expected = reader.read(VOLUMES, BOX)
    left = {"lundprobe.json": 2, "0": 2}

    def fail(method: str, path: str) -> int | None:
        name = path.rpartition("/")[2]
        left[name] = left.get(name, 0) - 1
        return 503 if left[name] >= 0 else None

    with web.traffic.failing(fail):
        web.location.read("lundprobe.json")
        found = StoreReader.open(web.location, extended).read(VOLUMES, BOX)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_lasting_failures_are_said(web, extended):
    reader = StoreReader.open(web.location, extended)
    with (
        web.traffic.failing(lambda method, path: 500),
        pytest.raises(OSError, match="answered 500") as raised,
    ):
        reader.read(VOLUMES, BOX)
    assert not isinstance(raised.value, DamagedStoreError)
    assert reader.read(VOLUMES, BOX), "a failure is not remembered"


@pytest.mark.slow  # counts rounds by time, which other tests beside it disturb
def test_requests_of_a_graph_travel_together_where_dask_may_wait(web, extended):
    """Indices, then chunks: with more workers than cores, since each waits for its own answers."""
    tree = open_tree(web.location, extended)
    box = dict(zip("zyx", BOX, strict=True))
    image = tree["mri/image"].sel(modality="T2w").isel(box)
    masks = [tree["mri/clinical/mask"].sel(structure=s).isel(box) for s in MASKS]
    with web.traffic.slowed(0.4), dask.config.set(num_workers=16):
        before = len(web.traffic.waves)
        dask.compute(image, *masks)
        assert len(web.traffic.waves) - before <= 2
