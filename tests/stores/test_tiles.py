"""The cache of decoded chunks: exact, shared, bounded, and none the worse for a failure."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tiles import Tiles, as_narrowest

PATH = "mri/image"


@pytest.fixture(scope="module")
def reader(dataset):
    patient = open_cohort(dataset)[0]
    return StoreReader.open(patient.location, patient.patient_id)


def whole(reader, path=PATH):
    z, y, x = (slice(0, n) for n in reader.metadata.arrays[path].volume_shape)
    return z, y, x


def reads(monkeypatch):
    """Boxes that are read from the store, as they are read."""
    seen = []
    read = StoreReader.read_parts

    def watched(self, parts, into=None):
        seen.extend(p.box for p in parts)
        return read(self, parts, into)

    monkeypatch.setattr(StoreReader, "read_parts", watched)
    return seen


def test_any_box_is_as_the_reader_has_it(reader):
    tiles, rng = Tiles(10_000_000), np.random.default_rng(3)
    for path, labels in ((PATH, {"modality": "sCT"}), ("mri/clinical/mask", {"structure": "BODY"})):
        array = reader.metadata.arrays[path]
        index = reader.index(array, labels)
        for _ in range(30):
            ends = np.sort(rng.integers(0, np.array([array.volume_shape] * 2) + 1, (2, 3)), axis=0)
            z, y, x = (slice(int(a), int(b)) for a, b in ends.T)
            found = tiles.read(reader, array, index, (z, y, x))
            (expected,) = reader.read([(path, labels)], (z, y, x))
            np.testing.assert_array_equal(found, expected)


def test_whole_numbers_take_half_the_memory(reader):
    tiles = Tiles(10_000_000)
    array = reader.metadata.arrays[PATH]
    voxels = tiles.read(reader, array, reader.index(array, {"modality": "T2w"}), whole(reader))
    assert (array.dtype, voxels.dtype) == (np.float32, np.int16)
    assert tiles.bytes < 1.2 * voxels.nbytes


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, -32768.0, 32767.0], np.int16),
        ([1.0, 32768.0], np.float32),
        ([0.5, 1.0], np.float32),
        ([0.1, 1.0], np.float64),
        ([1.0, np.nan, np.inf], np.float32),
        ([1e300], np.float64),
    ],
)
def test_the_narrowest_type_holds_every_value(values, kind):
    given = np.array(values, np.float64)
    narrowed = as_narrowest(given)
    assert narrowed.dtype == kind
    np.testing.assert_array_equal(narrowed.astype(np.float64), given)


def test_equal_voxels_are_kept_as_one(reader):
    tiles = Tiles(10_000_000)
    array = reader.metadata.arrays["mri/clinical/fiducial_mask"]
    tiles.read(reader, array, (), whole(reader, array.spec.path))
    boxes = len(array.codec.boxes())
    assert tiles.bytes < boxes * array.codec.chunk_bytes


def test_a_chunk_is_decoded_once_for_all_threads(reader, monkeypatch):
    tiles, seen = Tiles(10_000_000), reads(monkeypatch)
    array = reader.metadata.arrays[PATH]
    index = reader.index(array, {"modality": "T2w"})
    cost = tiles.missing_bytes(reader, array, index, whole(reader))
    assert cost == len(array.codec.boxes()) * array.codec.chunk_bytes
    barrier = threading.Barrier(8)

    def read(_):
        barrier.wait(10)
        return tiles.read(reader, array, index, whole(reader))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    assert len(seen) == 1
    assert all(np.array_equal(f, found[0]) for f in found)
    assert tiles.missing_bytes(reader, array, index, whole(reader)) == 0


def test_no_more_bytes_are_kept_than_allowed(reader):
    array = reader.metadata.arrays[PATH]
    tiles = Tiles(2 * array.codec.chunk_bytes)
    for modality in ("T2w", "sCT", "T2w"):
        index = reader.index(array, {"modality": modality})
        found = tiles.read(reader, array, index, whole(reader))
        (expected,) = reader.read([(PATH, {"modality": modality})], whole(reader))
        np.testing.assert_array_equal(found, expected)
        assert tiles.bytes <= tiles.max_bytes
    none = Tiles(0)
    none.read(reader, array, (0,), whole(reader))
    assert none.bytes == 0


def test_a_failure_is_told_to_all_and_kept_by_none(reader, monkeypatch):
    tiles = Tiles(10_000_000)
    array = reader.metadata.arrays[PATH]
    read, barrier = StoreReader.read_parts, threading.Barrier(4)

    def damaged(self, parts, into=None):
        raise DamagedStoreError("damaged")

    def ask(_):
        barrier.wait(10)
        with pytest.raises(DamagedStoreError):
            tiles.read(reader, array, (0,), whole(reader))

    monkeypatch.setattr(StoreReader, "read_parts", damaged)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    monkeypatch.setattr(StoreReader, "read_parts", read)
    assert tiles.read(reader, array, (0,), whole(reader)).any()
