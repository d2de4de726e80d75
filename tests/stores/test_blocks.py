"""Selections of volumes: as NumPy has them, of one read each, and cut where shards' chunks end."""

from __future__ import annotations

import pickle

import dask
import numpy as np
import pytest
import xarray as xr

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.stores import lazy
from lundprobe_zarr.stores.lazy import LazyVolumes
from lundprobe_zarr.stores.reader import StoreReader

MASK = "mri/clinical/mask"


@pytest.fixture
def patient(dataset):
    return open_cohort(dataset)[0]


@pytest.fixture
def mask(patient):
    return patient.tree[MASK]


@pytest.fixture
def reads(monkeypatch):
    """Numbers of volumes of each read of a store."""
    seen = []
    read = StoreReader.read_parts

    def watched(self, parts, into=None):
        seen.append(len(parts))
        return read(self, parts, into)

    monkeypatch.setattr(StoreReader, "read_parts", watched)
    return seen


def random_key(rng, length):
    """A slice of at least one place, of any step; or an integer."""
    if rng.random() < 0.2:
        return int(rng.integers(-length, length))
    start, stop = sorted(rng.integers(0, length + 1, 2).tolist())
    if start == stop:
        return slice(None, None, -1)
    step = int(rng.integers(1, 4))
    return slice(start, stop, step) if rng.random() < 0.7 else slice(-1, None, -step)


def test_selections_of_selections_are_as_numpy_has_them(mask, monkeypatch):
    monkeypatch.setattr(lazy, "_BLOCK_VOXELS", 5000)
    values, rng = mask.values, np.random.default_rng(0)
    for _ in range(40):
        found, expected = mask, values
        for _ in range(int(rng.integers(1, 4))):
            key = [random_key(rng, n) for n in expected.shape]
            if key and not isinstance(key[0], int) and rng.random() < 0.4:
                key[0] = rng.integers(0, expected.shape[0], 3)
                expected = expected[key[0]][(slice(None), *key[1:])]
            else:
                expected = expected[tuple(key)]
            found = found[tuple(key)]
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.values, expected)


def test_lists_may_repeat_places_and_go_back(mask):
    whole = mask[0, :, :, 20].values
    for places in ([3, 3, 5], [5, 3, 4], [-1, 0, 0], np.array([2, 4])):
        np.testing.assert_array_equal(mask[0, places, :, 20].values, whole[places])


@pytest.mark.parametrize("labels_first", [True, False])
def test_a_patch_is_one_chunk_and_one_read(mask, labels_first, reads):
    names = ["Rectum", "Bladder"]
    steps = [lambda a: a.sel(structure=names), lambda a: a.isel(z=slice(3, 15), y=slice(4, 9))]
    patch = mask
    for step in steps if labels_first else reversed(steps):
        patch = step(patch)
    assert patch.data.npartitions == 1
    assert patch.shape[:3] == (2, 12, 5)
    patch.values  # noqa: B018
    assert reads == [2]


def test_more_is_cut_where_chunks_of_the_shard_end(mask, patient, monkeypatch):
    depth = StoreReader.open(patient.location, patient.patient_id).array(MASK).chunk[0]
    area = mask.sizes["y"] * mask.sizes["x"]
    monkeypatch.setattr(lazy, "_BLOCK_VOXELS", depth * area)
    some = mask[:2, 1:]
    labels, slabs, *plane = some.data.chunks
    assert labels == (1, 1)
    assert slabs[:1] == (depth - 1,)
    assert set(slabs[1:-1]) <= {depth}
    assert plane == [(n,) for n in mask.shape[2:]]
    assert mask[0, ::-1].data.chunks[0][0] == (mask.sizes["z"] - 1) % depth + 1
    assert mask[:, 5].data.chunks[0] == (1,) * len(mask.structure)


def test_equal_selections_are_read_once(mask, reads):
    one, other = (mask.sel(structure="Rectum").isel(z=slice(2, 9)) for _ in range(2))
    dask.compute(one.sum(), other.any("z"))
    assert reads == [1]


def test_what_is_no_volume_any_more_is_sliced_as_it_is(mask):
    changed = mask.copy()
    changed[{"structure": 0}] = True
    assert changed[0, 3].values.all()
    assert not mask[0, 3].values.all()
    np.testing.assert_array_equal((~mask)[1, 4].values, ~mask[1, 4].values)
    np.testing.assert_array_equal(mask.T[4].values, mask[..., 4].values.T)


def test_other_selections_are_those_of_xarray(mask):
    whole = mask.values
    there = np.arange(mask.sizes["z"]) % 2 == 0
    np.testing.assert_array_equal(mask[:, there].values, whole[:, there])
    two = mask.isel(z=[1, 2], x=[3, 7])
    np.testing.assert_array_equal(two.values, whole[:, 1:3][..., [3, 7]])
    points = mask.isel(z=xr.DataArray([1, 2], dims="p"), x=xr.DataArray([3, 7], dims="p"))
    expected = whole[:, [1, 2], :, [3, 7]]  # (p, structure, y)
    np.testing.assert_array_equal(points.transpose("p", "structure", "y").values, expected)
    assert mask[:, 3:3].values.shape == (whole.shape[0], 0, *whole.shape[2:])
    with pytest.raises(IndexError, match="out of bounds"):
        mask[0, 1000]


def test_volumes_stand_beside_other_arrays(patient):
    """xarray computes arrays of one class together, and no others."""
    mri = patient.mri
    mixed = mri.assign(brighter=mri.image + 1).isel(z=slice(3, 5))
    loaded = mixed.load()
    np.testing.assert_array_equal(loaded.brighter.values, loaded.image.values + 1)
    xr.concat([mri.image.isel(z=[0]), mri.image.isel(z=[1]) + 0], "z").compute()


def test_copies_are_equal(mask):
    patch = mask.isel(z=slice(2, 9), structure=1)
    for other in (patch.copy(deep=True), pickle.loads(pickle.dumps(patch))):
        xr.testing.assert_identical(other.isel(x=3).compute(), patch.isel(x=3).compute())


def test_volumes_alone_take_new_axes_and_lists(patient):
    reader = StoreReader.open(patient.location, patient.patient_id)
    volumes = LazyVolumes(reader, "mri/image")
    whole = volumes[:, :, :, :]
    np.testing.assert_array_equal(volumes[0, None, 3, [2, 2, 4]], whole[0, 3, [2, 2, 4]][None])
    assert volumes[1, 2, 3, 4] == whole[1, 2, 3, 4]


def test_what_was_persisted_is_read_no_more(mask, reads):
    kept = mask.persist()
    reads.clear()
    assert (kept.isel(z=1).values == kept.values[..., 1, :, :]).all()
    assert reads == []


def test_other_data_under_the_same_name_are_what_they_are(mask):
    ones = dask.array.from_array(np.ones(mask.shape, bool), name=mask.data.name)
    assert mask.copy(data=ones).isel(z=1).values.all()
