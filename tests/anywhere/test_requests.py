"""How much is asked of a server, and when: counted by the server itself."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from places import Place
from servers import Request

from lundprobe_zarr import open_cohort
from lundprobe_zarr.errors import DamagedStoreError, DatasetError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores import reader as reading
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
    monkeypatch.setattr(reading, "INDEX_READ_BYTES", 0)
    reader = StoreReader.open(web.location, extended)
    box = (slice(0, 14), slice(0, 60), slice(0, 60))
    reader.read(VOLUMES[:1], box)
    with web.traffic.counted() as merged:
        whole = reader.read(VOLUMES[:1], box)
    monkeypatch.setattr(reading, "MERGE_GAP", -1)
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


def selected(tree):
    """T2w and four masks, lazy, each selected by itself."""
    box = dict(zip("zyx", BOX, strict=True))
    masks = [tree["mri/clinical/mask"].isel(box).sel(structure=s) for s in MASKS]
    return [tree["mri/image"].sel(modality="T2w").isel(box), *masks]


WAYS = {
    "compute": lambda arrays: dask.compute(*arrays),
    "values": lambda arrays: [a.values for a in arrays],
    "one worker": lambda arrays: dask.compute(*arrays, num_workers=1),
    "reduced": lambda arrays: dask.compute(*((a > 0).sum() for a in arrays)),
    "crop": lambda arrays: [a.lp.crop(((1, 3, 2), (6, 9, 9))).values for a in arrays],
}


@pytest.fixture
def as_large(monkeypatch):
    """Masks come with the indices of their shards and images do not, as at full size."""
    monkeypatch.setattr(reading, "INDEX_READ_BYTES", 1024)


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_a_graph_takes_two_rounds_on_two_workers(web, extended, way, as_large, monkeypatch):
    """Each read of ranges waits once; so there are no more rounds than reads."""
    rounds, read = [], Location.read_ranges

    def watched(self, ranges):
        rounds.append([r.name.rpartition(".zarr/")[2] for r in ranges])
        return read(self, ranges)

    arrays = selected(open_tree(web.location, extended))
    monkeypatch.setattr(Location, "read_ranges", watched)
    with dask.config.set(num_workers=2):
        way(arrays)
    indices, chunks = rounds
    assert len(indices) == len(set(indices)) == len(VOLUMES)
    assert {name.partition("/c/")[0] for name in chunks} == {"mri/image"}


def test_only_what_somebody_holds_is_fetched_ahead(web, extended):
    tree = open_tree(web.location, extended)
    masks = tree["mri/clinical/mask"]
    kept = [masks.sel(structure=s).isel(z=3) for s in MASKS]
    whole = masks.isel(z=3)  # says of no structure that it is wanted
    with web.traffic.counted() as asked:
        tree["mri/image"].isel(modality=0, z=3, y=4).values  # noqa: B018
    assert len({n for n in names(asked) if n.startswith("mri/clinical/mask")}) == len(kept)
    del kept
    other = open_tree(web.location, extended)
    with web.traffic.counted() as asked:
        for structure in MASKS:
            other["mri/clinical/mask"].sel(structure=structure).isel(z=3)
        other["mri/image"].isel(modality=0, z=3, y=4).values  # noqa: B018
    assert {n.partition("/c/")[0] for n in names(asked)} == {"mri/image"}
    assert whole.values.any()


@pytest.mark.parametrize("status", [404, 500])
def test_what_fails_ahead_is_said_to_who_reads_it(web, extended, status):
    tree = open_tree(web.location, extended)
    image, *masks = selected(tree)
    expected = image.values, masks[0].values
    image, *masks = selected(open_tree(web.location, extended))
    lost = f"mask/c/{tree['mri/clinical/mask'].get_index('structure').get_loc(MASKS[1])}/"
    with web.traffic.failing(lambda method, path: status if lost in path else None):
        np.testing.assert_array_equal(image.values, expected[0])
        np.testing.assert_array_equal(masks[0].values, expected[1])
        with pytest.raises(DatasetError, match=lost):
            masks[1].values  # noqa: B018
        with pytest.raises(DatasetError, match=lost):
            dask.compute(*masks)
    assert masks[1].any(), "a failure is not remembered"


def test_a_server_that_fails_is_not_asked_twice_over(web, extended):
    def requests(arrays):
        with (
            web.traffic.failing(lambda method, path: 500),
            web.traffic.counted() as asked,
            pytest.raises(DatasetError, match="answered 500"),
        ):
            arrays[0].values  # noqa: B018
        return sum("mri/image" in name for name in (r.path for r in asked))

    alone = requests(selected(open_tree(web.location, extended))[:1])
    assert requests(selected(open_tree(web.location, extended))) == alone


@pytest.mark.slow  # counts rounds by time, which other tests beside it disturb
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_requests_of_a_graph_travel_together(web, extended, way, as_large):
    arrays = selected(open_tree(web.location, extended))
    with web.traffic.slowed(0.4), dask.config.set(num_workers=2):
        before = len(web.traffic.waves)
        way(arrays)
        assert len(web.traffic.waves) - before <= 2
