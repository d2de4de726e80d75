"""The same dataset gives the same answers wherever it lives."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from places import SECRET, Place
from servers import file_server

from lundprobe_zarr import load_dataset, open_cohort
from lundprobe_zarr.dataset.opening import open_manifest, read_table, table_rows
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader

BOX = (slice(2, 9), slice(5, 30), slice(7, 40))
VOLUMES = [
    ("mri/image", {"modality": "T2w"}),
    ("mri/image", {"modality": "sCT"}),
    ("mri/dose", {}),
    ("mri/clinical/mask", {"structure": "Rectum"}),
    ("mri/nnunet/fold_mask", {"structure": "CTVT_427", "fold": 3}),
]


def plain(dataset: Path, patient_id: str) -> xr.DataTree:
    return xr.open_datatree(dataset / "patients" / f"{patient_id}.zarr", engine="zarr")


def test_cohort_tables_and_patients(place, patient_ids):
    cohort = open_cohort(place.url, place.options)
    assert list(cohort.patients["patient_id"]) == patient_ids
    assert len(cohort.where("part = 'base'")) == len(patient_ids) - 1


def test_patches_equal_plain_xarray(place, dataset, extended):
    found = StoreReader.open(place.location, extended).read(VOLUMES, BOX)
    with plain(dataset, extended) as tree:
        for (path, labels), voxels in zip(VOLUMES, found, strict=True):
            expected = tree[path].sel(labels)[BOX]
            assert voxels.dtype == expected.dtype
            np.testing.assert_array_equal(voxels, expected.values)


def test_trees_equal_plain_xarray(place, dataset, extended):
    tree = open_cohort(place.url, place.options)[extended].tree
    with plain(dataset, extended) as expected:
        assert [n.path for n in tree.subtree] == [n.path for n in expected.subtree]
        for node in expected.subtree:
            ours = tree[node.path].to_dataset(inherit=False)
            theirs = node.to_dataset(inherit=False)
            xr.testing.assert_identical(_with_objects(ours.load()), _with_objects(theirs.load()))


def _with_objects(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with texts as objects: older versions of zarr or xarray give no others."""
    texts = [name for name, c in dataset.coords.items() if c.dtype.kind in "OT"]
    return dataset.assign_coords({n: dataset[n].compute().astype(object) for n in texts})


def test_validates_everywhere(place):
    found = validate(place.location)
    assert found.problems == ()
    assert found.volumes > 100


def test_opens_as_zarr_does(place, extended):
    store = place.location.zarr_store(f"patients/{extended}.zarr")
    with xr.open_zarr(store, group="mri", chunks=None) as mri:
        assert list(mri.modality.values) == ["T2w", "sCT"]


def mean(reader: StoreReader) -> float:
    return float(reader.read(VOLUMES[:1], BOX)[0].mean())


@pytest.mark.parametrize("name", ["web", "s3"])
def test_readers_work_in_forked_processes(request, name, extended):
    reader = StoreReader.open(request.getfixturevalue(name).location, extended)
    here = mean(reader)
    assert forked(lambda: mean(reader)) == here


# Forking with threads about is what training loaders do, and what Python 3.12 warns of.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def forked(read: Callable[[], float]) -> float:
    """What `read` gives in a forked child, garbage collected."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: (sender.send(read()), gc.collect()))
    child.start()
    assert receiver.poll(30), "the child hangs"
    value = float(receiver.recv())
    child.join(10)
    return value


@pytest.mark.parametrize("name", ["web", "s3"])
def test_a_parent_reads_on_after_forking(request, name, extended):
    """The child opens file systems anew; those it lets go of share the parent's connections."""
    place = request.getfixturevalue(name)
    here = mean(StoreReader.open(place.location, extended))
    # What the child reads elsewhere makes fsspec forget whom it knows, who is nobody's else now.
    assert forked(lambda: place.beside("nowhere").location.exists("x")) == 0
    found: list[float] = []
    thread = threading.Thread(
        target=lambda: found.append(mean(StoreReader.open(place.location, extended))), daemon=True
    )
    thread.start()
    thread.join(20)
    assert found == [here], "the parent hangs"


def test_readers_and_trees_work_in_spawned_processes(web, s3, extended):
    image = open_cohort(web.url)[extended].mri.image.isel(modality=0)
    reader = StoreReader.open(s3.location, extended)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert float(image.sum().compute(scheduler="processes", pool=pool)) == float(image.sum())
        assert pool.submit(mean, reader).result(timeout=60) == mean(reader)


def test_server_without_ranges_gives_right_voxels(dataset, extended, tmp_path):
    with file_server(dataset, takes_ranges=False) as (url, _):
        found = StoreReader.open(Location(url), extended).read(VOLUMES[:1], BOX)
    with plain(dataset, extended) as tree:
        np.testing.assert_array_equal(found[0], tree["mri/image"].sel(modality="T2w")[BOX].values)


def test_writes_appear_whole(place):
    if not place.location.can_list:
        with pytest.raises(UsageError, match="cannot be written"):
            place.location.write("new", b"12")
        return
    location = (Place("memory://w/x") if place.url.startswith("file") else place).location
    location.write("scratch/a", b"12")
    assert location.exists("scratch/a")
    assert (location.size("scratch/a"), location.read("scratch/a")) == (2, b"12")
    assert location.find("scratch") == {"a": 2}
    location.delete("scratch/a")
    location.delete("scratch/a")
    assert not location.exists("scratch/a")


def test_local_writes_leave_nothing_behind(tmp_path):
    location = Location(tmp_path / "d")
    location.write("a/b", b"1")
    location.write("a/b", b"22")
    (tmp_path / "source").write_bytes(b"333")
    location.write_file("c", tmp_path / "source")
    assert location.find("") == {"a/b": 2, "c": 3}


def test_query_and_user_of_a_web_url_travel_and_stay_hidden(dataset):
    with file_server(dataset) as (url, traffic):
        location = Location(f"{url.replace('://', '://me:pass@')}?sig={SECRET}")
        location.read("lundprobe.json")
    assert traffic.requests[-1].path.startswith("/lundprobe.json?sig=wJal")
    shown = f"{location!r} {location.url} {location.path('x')}"
    assert "pass" not in shown
    assert "wJal" not in shown


@pytest.mark.parametrize("first", [16, 1 << 16], ids=["footer in two reads", "in one"])
def test_rows_are_counted_by_footers(place, monkeypatch, first):
    monkeypatch.setattr("lundprobe_zarr.dataset.opening._FOOTER", first)
    manifest = open_manifest(place.location)
    for name, files in manifest.tables.items():
        expected = read_table(place.location, manifest, name).num_rows
        assert table_rows(place.location, files) == expected
    with pytest.raises(DatasetError, match="missing, or not a valid Parquet file"):
        table_rows(place.location, {"base": ["README.md"]})
    with pytest.raises(DatasetError, match="missing, or not a valid Parquet file"):
        table_rows(place.location, {"base": ["metadata/none.parquet"]})


@pytest.mark.parametrize("config", ["volumes", "patches"])
def test_datasets_streams_from_everywhere(place, dataset, tmp_path, config):
    options = {"split": "base+extended", "streaming": True, "cache_dir": tmp_path}
    if config == "patches":
        options |= {"patch_size": (4, 8, 8), "sampling": "balanced"}
    there = load_dataset(place.url, config, storage_options=place.options, **options)
    here = load_dataset(dataset, config, **options)
    rows = list(zip(there.with_format("numpy"), here.with_format("numpy"), strict=True))
    for one, other in rows:
        assert one["patient_id"] == other["patient_id"]
        for name in ("image", "mask", "dose"):
            np.testing.assert_array_equal(one[name], other[name])
    assert len(rows) >= 4
    if config == "volumes":
        assert SECRET not in repr([dict(row["image"]) for row in there])
