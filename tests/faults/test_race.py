"""Two conversions into one place, and readers whose patient is replaced while they read."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Converted, Target, delays, kill, require_undisturbed, start

import lundprobe_zarr as lp
from lundprobe_zarr.errors import ChangedStoreError, DamagedStoreError
from lundprobe_zarr.integrity.copy import copy_dataset, send_store
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.folders import replace_folder
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tree import open_tree

WHOLE = (slice(None),) * 3
#: Each outcome is met so often, in a second or two on a quiet machine.
OFTEN, LONG_S = 3, 120.0


@pytest.mark.parametrize("later_s", [0.0, *delays("two at once", 3.0, most=1)])
def test_of_two_conversions_one_goes_on_and_nothing_is_mixed(
    old: Converted, tmp_path: Path, later_s: float
) -> None:
    target = Target(str(tmp_path / "dataset"), tmp_path / "scratch")
    first = start(old.source, target)
    time.sleep(later_s)
    second = start(old.source, target)
    statuses = [p.wait(120) for p in (first, second)]
    printed = [kill(p) for p in (first, second)]
    assert sorted(statuses) in ([0, 0], [0, 2]), printed
    for status, text in zip(statuses, printed, strict=True):
        assert (status == 2) is ("another conversion is running there" in text), text
    require_undisturbed(target, old.reference)


@pytest.fixture
def shared(old: Converted, tmp_path: Path) -> Path:
    """A dataset of the old patients, to replace patients in."""
    shutil.copytree(old.dataset, tmp_path / "dataset")
    return tmp_path / "dataset"


def extended(place: Path) -> str:
    return str(lp.open_cohort(place).where("part = 'extended'").patients["patient_id"].iloc[0])


def replace(dataset: Path, by: Path, patient: str) -> None:
    """Let another store appear, as a conversion does in the end."""
    final = dataset / store_path(patient)
    draft = final.with_name(f".{final.name}.draft-{uuid.uuid4().hex[:8]}")
    shutil.copytree(by / store_path(patient), draft)
    replace_folder(draft, final)


def every_volume(reader: StoreReader) -> list[tuple[str, dict[str, Any]]]:
    """Array and labels of every volume that both versions of the patient have."""
    arrays = reader.metadata.arrays
    return [
        (path, dict(record.labels))
        for path in ("mri/image", "mri/dose", "mri/clinical/mask", "sct/image")
        for record in arrays[path].sources
        if record.labels.get("structure") in (None, "CTVT_427", "Rectum", "Bladder", "BODY")
    ]


def read_all(dataset: Path | Location, patient: str) -> tuple[StoreReader, list[Any]]:
    place = dataset if isinstance(dataset, Location) else Location(dataset)
    reader = StoreReader.open(place, patient)
    return reader, reader.read(every_volume(reader), WHOLE)


def same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(np.array_equal, some, others))


@contextmanager
def going_on(action: Callable[[], None]) -> Iterator[None]:
    """Within, `action` is done over and over by another thread."""
    ended, failed = threading.Event(), []

    def go_on() -> None:
        try:
            while not ended.is_set():
                action()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]


def test_voxels_read_while_the_patient_is_replaced_are_all_old_or_all_new(
    old: Converted, new: Converted, shared: Path
) -> None:
    patient = extended(old.dataset)
    versions = [read_all(c.dataset, patient)[1] for c in (old, new)]
    assert not any(np.array_equal(a, b) for a, b in zip(*versions, strict=True))
    turns = cycle([new.dataset, old.dataset])
    seen, refused, reader = [0, 0], 0, None
    until = time.monotonic() + LONG_S
    with going_on(lambda: replace(shared, next(turns), patient)):
        while min(*seen, refused) < OFTEN and time.monotonic() < until:
            try:
                reader = reader or StoreReader.open(Location(shared), patient)
                read = reader.read(every_volume(reader), WHOLE)
            except ChangedStoreError:
                refused, reader = refused + 1, None
                continue
            except DamagedStoreError:
                if reader is None:  # it was to be opened between the two renames
                    continue
                raise
            which = [same(read, v) for v in versions]
            assert sum(which) == 1, "a mixture of two stores"
            seen[which.index(True)] += 1
    assert min(*seen, refused) == OFTEN


def test_a_tree_that_is_open_refuses_once_its_patient_is_replaced(
    old: Converted, new: Converted, shared: Path
) -> None:
    patient = extended(shared)
    tree = lp.open_cohort(shared)[patient].tree
    before = tree["mri/image"].values
    replace(shared, new.dataset, patient)
    for path in ("mri/image", "mri/clinical/mask", "mri/observers/present", "sct/dose"):
        with pytest.raises(ChangedStoreError, match="another one has taken its place since") as e:
            tree[path].values  # noqa: B018
        assert "open the dataset again" in str(e.value)
    again = lp.open_cohort(shared)[patient].tree
    assert not np.array_equal(again["mri/image"].values, before)
    shutil.rmtree(shared / store_path(patient))
    with pytest.raises(ChangedStoreError, match="gone, or just being replaced"):
        again["mri/image"].values  # noqa: B018


def test_every_patch_of_a_stream_is_of_one_store(
    old: Converted, new: Converted, shared: Path
) -> None:
    patient = extended(shared)
    chosen = f"patient_id = '{patient}'"
    stream = lp.PatchStream(
        lp.open_cohort(shared).where(chosen),
        patch_size=(4, 12, 12),
        structures=("CTVT_427", "Rectum", "BODY"),
        sampling="grid",
        seed=1,
    )
    whole = [open_tree(Location(c.dataset), patient)["mri"].load() for c in (old, new)]
    turns, done = cycle([new.dataset, old.dataset]), [0, 0]
    until = time.monotonic() + LONG_S
    with going_on(lambda: (replace(shared, next(turns), patient), time.sleep(0.3))[1]):
        while min(done) < 8 * OFTEN and time.monotonic() < until:
            for sample in stream:
                which = [patch_fits(sample, tree) for tree in whole]
                assert any(which), "a mixture of two stores"
                done = [n + w for n, w in zip(done, which, strict=True)]
    assert min(done) >= 8 * OFTEN


def patch_fits(sample: dict[str, Any], mri: Any) -> bool:
    box = dict(zip("zyx", map(slice, sample["start"], sample["start"] + (4, 12, 12)), strict=True))
    image = mri.ds.image.sel(modality=["T2w"]).isel(box).values
    mask = mri["clinical"].ds.mask.sel(structure=list(sample["structure"])).isel(box).values
    return np.array_equal(sample["image"], image) and np.array_equal(sample["mask"], mask)


@pytest.fixture
def bucket(old: Converted, tmp_path: Path) -> Location:
    """The old patients, in a place where objects are replaced one by one."""
    place = Location(f"memory://{tmp_path}/dataset")
    assert not copy_dataset(Location(old.dataset), place).failures
    return place


def test_in_a_bucket_a_replaced_patient_is_refused_and_what_was_read_stays_old(
    old: Converted, new: Converted, bucket: Location
) -> None:
    patient = extended(old.dataset)
    versions = [read_all(c.dataset, patient)[1] for c in (old, new)]
    kept, _ = read_all(bucket, patient)
    opened = StoreReader.open(bucket, patient)
    (first, *_) = every_volume(opened)
    opened.read([first], WHOLE)
    send_store(Location(new.dataset), bucket, patient)
    assert same(kept.read(every_volume(kept), WHOLE), versions[0]), "all of it was fetched before"
    with pytest.raises(ChangedStoreError, match="another one has taken its place since"):
        opened.read(every_volume(opened), WHOLE)
    assert same(read_all(bucket, patient)[1], versions[1])
    bucket.delete(f"{store_path(patient)}/zarr.json")
    bucket.delete(f"{store_path(patient)}/mri/image/c/0/0/0/0")
    with pytest.raises(ChangedStoreError, match="gone, or just being replaced"):
        StoreReader(bucket, kept.metadata).read(every_volume(kept), WHOLE)


def test_in_a_bucket_a_sound_shard_of_the_same_size_is_known_for_anothers(
    old: Converted, bucket: Location
) -> None:
    patient = extended(old.dataset)
    reader = StoreReader.open(bucket, patient)
    array = reader.array("mri/clinical/mask")
    shards = {r.stored_bytes: (k, r) for a, r, k in reader.metadata.shards() if a is array}
    size, (key, record) = min(shards.items())
    (volume,) = reader.read([("mri/clinical/mask", record.labels)], WHOLE)
    others = (b"".join(array.codec.encode(np.roll(volume, n, 2))) for n in range(1, 9))
    other = next(o for o in others if len(o) == size)
    root = f"{store_path(patient)}/zarr.json"
    bucket.write(f"{store_path(patient)}/{key}", other)
    bucket.write(root, bucket.read(root) + b"\n")
    with pytest.raises(ChangedStoreError, match="another one has taken its place since"):
        StoreReader(bucket, reader.metadata).read([("mri/clinical/mask", record.labels)], WHOLE)


def test_a_row_of_hugging_face_is_of_one_store(
    old: Converted, new: Converted, shared: Path
) -> None:
    patient = extended(shared)

    def first_row() -> Any:
        rows = lp.load_dataset(
            shared,
            "patches",
            split="extended",
            streaming=True,
            where=f"patient_id = '{patient}'",
            patch_size=(4, 12, 12),
        )
        return next(iter(rows))

    row = first_row()
    before = np.asarray(row["image"])
    replace(shared, new.dataset, patient)
    with pytest.raises(ChangedStoreError, match="open the dataset again"):
        np.asarray(row["mask"])
    assert not np.array_equal(first_row()["image"], before)
