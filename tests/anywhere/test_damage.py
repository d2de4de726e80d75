"""A missing, shortened or altered object is an error that names it: never silent wrong voxels."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import file_server

from lundprobe_zarr import open_cohort
from lundprobe_zarr.errors import (
    DamagedStoreError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.stores.metadata import VolumeArray
from lundprobe_zarr.stores.reader import StoreReader

BOX = (slice(0, 14), slice(0, 60), slice(0, 60))
T2W = [("mri/image", {"modality": "T2w"})]


def missing(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(place: int) -> Callable[[Path], None]:
    def flipped(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(bytes(data))

    return flipped


DAMAGES = [missing, empty, truncated, halved, flip(7), flip(-10)]


@pytest.fixture(params=["disk", "web", "memory"])
def reach(request: pytest.FixtureRequest, copied: Path):
    """The damaged copy's location in one place or another, once it is damaged."""
    if request.param == "disk":
        yield lambda: Location(copied)
    elif request.param == "web":
        with file_server(copied) as (url, _):
            yield lambda: Location(url)
    else:

        def remembered() -> Location:
            location = Location(f"memory://damaged/{request.node.name}")
            for file in (f for f in copied.rglob("*") if f.is_file()):
                location.write(file.relative_to(copied).as_posix(), file.read_bytes())
            return location

        yield remembered


@pytest.mark.parametrize("tail", [0, 1 << 16])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_named(copied, reach, damage, tail, extended, shard, monkeypatch):
    monkeypatch.setattr("lundprobe_zarr.stores.reader.INDEX_READ_BYTES", tail)
    damage(copied / shard)
    reader = StoreReader.open(reach(), extended)
    with pytest.raises(DamagedStoreError) as raised:
        reader.read(T2W, BOX)
    message = str(raised.value)
    assert f"patients/{extended}.zarr/mri/image/c/0/0/0/0" in message
    assert "array mri/image [modality=T2w]" in message
    where = shlex.quote(reader.location.url)
    assert message.endswith(
        f"convert this patient again (`lundprobe-zarr convert SOURCE {where} --patients "
        f"{extended} --overwrite`), or copy the store again"
    )


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def first_volume(reader: StoreReader) -> tuple[VolumeArray, SourceRecord]:
    """Array and source record of the T2w image."""
    array = reader.array("mri/image")
    return array, next(r for r in array.sources if r.labels == {"modality": "T2w"})


def test_a_whole_volume_is_what_its_boxes_are(dataset, extended):
    reader = StoreReader.open(Location(dataset), extended)
    for array, record, _ in reader.metadata.shards():
        (expected,) = reader.read([(array.spec.path, record.labels)], (slice(None),) * 3)
        found = reader.volume(array, record, verify=True)
        assert found.dtype == array.dtype
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("damage", [*DAMAGES, longer])
def test_a_damaged_shard_gives_no_whole_volume(copied, reach, damage, extended, shard):
    damage(copied / shard)
    reader = StoreReader.open(reach(), extended)
    with pytest.raises(DamagedStoreError) as raised:
        reader.volume(*first_volume(reader))
    assert raised.value.patient == extended
    assert raised.value.where == reader.location.path(shard)
    assert "array mri/image [modality=T2w]" in str(raised.value.part)


def test_a_sound_shard_that_was_not_written_here_fails_verification(dataset, extended):
    reader = StoreReader.open(Location(dataset), extended)
    array, record = first_volume(reader)
    other = record.model_copy(update={"stored_sha256": "0" * 64})
    assert reader.volume(array, other).any()
    with pytest.raises(DamagedStoreError, match="SHA-256 differs from 0000"):
        reader.volume(array, other, verify=True)


def test_a_whole_volume_takes_one_request_and_no_more_bytes_than_its_shard(
    dataset, extended, monkeypatch
):
    reader = StoreReader.open(Location(dataset), extended)
    array, record = first_volume(reader)
    asked: list[Range] = []
    real = Location.read_ranges
    monkeypatch.setattr(
        Location, "read_ranges", lambda self, r: (asked.extend(r), real(self, r))[1]
    )
    reader.volume(array, record, verify=True)
    assert [(r.start, r.stop) for r in asked] == [(0, record.stored_bytes + 1)]


def test_chunk_is_named(copied, extended, shard):
    flip(7)(copied / shard)
    reader = StoreReader.open(Location(copied), extended)
    with pytest.raises(DamagedStoreError, match=r"chunk \(0, 0, 0\) \(z, y, x\): an inner chunk"):
        reader.read(T2W, BOX)


@pytest.mark.parametrize("damage", DAMAGES)
def test_trees_find_damage_where_zarr_gives_zeros(copied, damage, extended, shard):
    damage(copied / shard)
    image = open_cohort(copied)[extended].mri.image
    with pytest.raises(DamagedStoreError, match="mri/image"):
        image.sel(modality="T2w").values  # noqa: B018
    assert image.sel(modality="sCT").values.any(), "the other volume is whole"


@pytest.mark.parametrize("damage", [missing, empty, truncated, flip(0), flip(-1)])
@pytest.mark.parametrize("array", ["mri/observers/present", "mri/clinical/fiducial_position"])
def test_damaged_flags_and_positions_are_named(copied, damage, array, extended):
    dims = 3 if array.endswith("present") else 2
    chunk = copied / f"patients/{extended}.zarr" / array / "c" / "/".join("0" * dims)
    data = chunk.read_bytes()
    if damage is truncated:
        chunk.write_bytes(data[:-1])
    else:
        damage(chunk)
    tree = open_cohort(copied)[extended].tree
    with pytest.raises(DamagedStoreError, match=f"{array}.*array {array}, chunk 0"):
        tree[array].values  # noqa: B018


def test_missing_store_is_said(copied, extended):
    shutil.rmtree(copied / f"patients/{extended}.zarr")
    with pytest.raises(DamagedStoreError, match=f"no store of patient {extended}"):
        open_cohort(copied)[extended].tree  # noqa: B018


def test_labels_are_checked(dataset, extended):
    reader = StoreReader.open(Location(dataset), extended)
    with pytest.raises(UnknownLabelError, match=r"'Liver'.*unknown; expected one of CTVT_427"):
        reader.read([("mri/clinical/mask", {"structure": "Liver"})], BOX)
    with pytest.raises(MissingStructureError, match="missing here; there are CTVT_427, Rectum"):
        reader.read([("mri/nnunet/mask", {"structure": "Bladder"})], BOX)
    with pytest.raises(UnknownLabelError, match="no array 'mri/pet'"):
        reader.read([("mri/pet", {})], BOX)
    with pytest.raises(UsageError, match="expected a label for each"):
        reader.read([("mri/image", {})], BOX)
    with pytest.raises(UsageError, match="without a step"):
        reader.read(T2W, (slice(0, 4, 2), slice(0, 4), slice(0, 4)))


def test_boxes_are_clipped_as_numpy_does(dataset, extended):
    reader = StoreReader.open(Location(dataset), extended)
    (whole,) = reader.read(T2W, (slice(None),) * 3)
    for box in (
        (slice(-3, None), slice(0, 1000), slice(5, 5)),
        (slice(3, 99), slice(-9, -2), slice(None, 7)),
        (slice(9, 2), slice(0, 4), slice(0, 4)),
    ):
        (part,) = reader.read(T2W, box)
        assert part.shape == whole[box].shape
        assert (part == whole[box]).all()


def test_another_patients_store_is_refused(copied: Path) -> None:
    first, second = open_cohort(copied).ids[:2]
    stores = copied / "patients"
    shutil.rmtree(stores / f"{first}.zarr")
    shutil.copytree(stores / f"{second}.zarr", stores / f"{first}.zarr")
    said = rf"{first}\.zarr: the store of patient {second}; expected that of {first}"
    patient = open_cohort(copied)[first]
    with pytest.raises(DamagedStoreError, match=said):
        _ = patient.mri
    with pytest.raises(DamagedStoreError, match=said):
        StoreReader.open(Location(copied), first)
    assert open_cohort(copied)[second].mri.sizes["z"] > 0
