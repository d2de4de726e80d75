"""Stores that fail, for a while or for good, and what is kept of remote ones on disk."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import DamagedStoreError, StreamError, UsageError
from lundprobe_zarr.patches import UniformSampling
from lundprobe_zarr.storage import decode_pool
from lundprobe_zarr.storage.cache import BLOCK, CachedLocation
from lundprobe_zarr.storage.decode_pool import cores
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.stream import prefetch as stream_reading
from lundprobe_zarr.stream.stream import SkippedPatchesWarning
from tests.altered import rewrite

SIZE = (6, 12, 12)


def make(cohort, **changes) -> lp.PatchStream:
    arguments = {"structures": ("Rectum",), "sampling": UniformSampling(4), "threads": 2} | changes
    return lp.PatchStream(cohort, SIZE, **arguments)


def same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one["patient_id"], one["index"]) == (other["patient_id"], other["index"])
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["mask"], other["mask"])


def test_a_passing_failure_is_tried_again(web, cohort, impatient):
    stream = make(web.cohort)
    counts: dict[str, int] = {}

    def fail(method: str, path: str) -> int | None:
        counts[path] = counts.get(path, 0) + 1
        return 503 if counts[path] <= 1 and "/c/" in path else None

    with web.traffic.failing(fail):
        found = list(stream)
    same(found, make(cohort))
    assert not stream.skipped


def test_a_lasting_failure_names_what_failed(web, impatient):
    stream = make(web.cohort, retries=1)
    victim = stream.plan.item(0, 5).patient_id
    before = {n for n in range(16) if stream.plan.item(0, n).patient_id == victim}
    with (
        web.traffic.failing(lambda method, path: 500 if victim in path else None),
        pytest.raises(StreamError, match=f"of patient {victim}.*2 attempts.*500") as raised,
    ):
        list(stream)
    assert f"patch {min(before)} of epoch 0" in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)


def test_skipping_is_counted_and_said(web, cohort, impatient):
    stream = make(web.cohort, retries=0, on_error="skip")
    victim = cohort.ids[2]
    with (
        web.traffic.failing(lambda method, path: 500 if victim in path else None),
        pytest.warns(SkippedPatchesWarning, match=f"4 of 16 patches.*{victim} \\(4\\)"),
    ):
        found = list(stream)
    assert dict(stream.skipped) == {victim: 4}
    same(found, [s for s in make(cohort) if s["patient_id"] != victim])
    assert stream.epoch == 1


def test_a_store_that_is_damaged_is_named(cohort, copied, impatient):
    victim = cohort.ids[0]
    shutil.rmtree(copied / "patients" / f"{victim}.zarr" / "mri" / "image" / "c")
    stream = make(lp.open_cohort(copied), retries=1)
    with pytest.raises(StreamError, match=f"{victim}.zarr/mri/image/c/0.*not there") as raised:
        list(stream)
    assert isinstance(raised.value.__cause__, DamagedStoreError)


def test_a_patient_without_the_dose_is_skipped_without_trying_again(copied):
    cohort = lp.open_cohort(copied)
    metadata = copied / "patients" / f"{cohort.ids[0]}.zarr" / "zarr.json"

    def lose(document):
        nodes = document["consolidated_metadata"]["metadata"]
        nodes["mri/other"] = nodes.pop("mri/dose")

    rewrite(metadata, lose)
    stream = make(cohort, dose=True, on_error="skip")
    with pytest.warns(SkippedPatchesWarning):
        found = list(stream)
    assert len(found) == 12
    with pytest.raises(StreamError, match=r"1 attempt: .*no array 'mri/dose'"):
        list(make(cohort, dose=True))


def location_of(web, folder: Path, limit: int = 10**9, identity: str = "a") -> CachedLocation:
    return CachedLocation(Location(web.url), folder, limit, identity)


def test_a_second_epoch_asks_the_server_for_nothing(web, cohort, tmp_path):
    whole = {"sampling": "grid", "shuffle": False, "pad": "zero"}
    found = list(lp.PatchStream(web.cohort, (20, 60, 60), **whole, cache=tmp_path))
    again = lp.PatchStream(web.cohort, (20, 60, 60), **whole, cache=tmp_path)
    with web.traffic.counted() as asked:
        repeated = list(again)
    assert asked == []
    expected = list(lp.PatchStream(cohort, (20, 60, 60), **whole))
    for one, two, three in zip(found, repeated, expected, strict=True):
        np.testing.assert_array_equal(one["image"], three["image"])
        np.testing.assert_array_equal(two["image"], three["image"])


def test_ranges_come_from_the_cache_byte_for_byte(web, dataset, tmp_path):
    """Random ranges of a large object, over its end too, in whatever order."""
    rng = np.random.default_rng(0)
    data = rng.bytes(5 * BLOCK + 1234)
    (dataset.parent / "large.bin").write_bytes(data)
    base = Location(web.url.rpartition("/")[0])
    cached = CachedLocation(base, tmp_path, 10**9, "a")
    for _ in range(60):
        start = int(rng.integers(0, len(data) + 100))
        stop = start + int(rng.integers(1, 2 * BLOCK))
        ranges = [Range("large.bin", start, stop), Range("large.bin", 0, 10)]
        assert cached.read_ranges(ranges) == [data[start:stop], data[:10]]
    with web.traffic.counted() as asked:
        assert cached.read_ranges([Range("large.bin", 0, len(data))]) == [data]
    assert asked == []
    (dataset.parent / "large.bin").unlink()


def test_only_blocks_that_are_lacking_are_fetched(web, dataset, tmp_path):
    (dataset.parent / "blocks.bin").write_bytes(bytes(range(256)) * (8 * BLOCK // 256))
    cached = CachedLocation(Location(web.url.rpartition("/")[0]), tmp_path, 10**9, "a")
    cached.read_ranges([Range("blocks.bin", 3 * BLOCK, 3 * BLOCK + 5)])
    with web.traffic.counted() as asked:
        cached.read_ranges([Range("blocks.bin", 2 * BLOCK + 7, 6 * BLOCK)])
    wanted = {(2 * BLOCK, 3 * BLOCK - 1), (4 * BLOCK, 6 * BLOCK - 1)}
    found = {tuple(map(int, re.findall(r"\d+", r.range or ""))) for r in asked}
    assert found == wanted
    (dataset.parent / "blocks.bin").unlink()


def test_what_is_not_there_is_not_kept(web, tmp_path):
    cached = location_of(web, tmp_path)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            cached.read("nothing")
        with pytest.raises(FileNotFoundError):
            cached.read_ranges([Range("nothing", 0, 10)])


def test_another_state_of_the_dataset_is_another_cache(web, tmp_path):
    location_of(web, tmp_path).read("lundprobe.json")
    with web.traffic.counted() as asked:
        location_of(web, tmp_path, identity="b").read("lundprobe.json")
    assert len(asked) == 1


def test_damage_to_the_cache_is_found_and_mended(web, cohort, tmp_path, impatient):
    expected = list(make(cohort))
    same(list(make(web.cohort, cache=tmp_path)), expected)
    spoilt = 0
    for file in (f for f in tmp_path.glob("*/*/*") if f.is_file()):
        data = bytearray(file.read_bytes())
        begin = 1024 * 1024 if file.suffix == ".part" else 0
        data[begin:] = bytes(len(data) - begin)
        file.write_bytes(data)
        spoilt += 1
    assert spoilt > 4
    same(list(make(web.cohort, cache=tmp_path)), expected)


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_good(web, cohort, tmp_path):
    """What it had written and not yet marked, or not yet renamed."""
    stream = make(web.cohort, cache=tmp_path)
    expected = list(make(cohort))
    same(list(stream), expected)
    for file in tmp_path.glob("*/*/*.part"):
        data = bytearray(file.read_bytes())
        marked = [n for n, mark in enumerate(data[: 1024 * 1024]) if mark]
        data[marked[-1]] = 0
        data[1024 * 1024 + marked[-1] * BLOCK :] = b"torn"
        file.write_bytes(data)
        file.with_suffix(".0123").write_bytes(b"half")
    same(list(make(web.cohort, cache=tmp_path)), expected)


def used(folder: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in folder.glob("*/*/*"))


def test_the_cache_keeps_to_its_limit(web, cohort, tmp_path):
    limit = 200_000
    stream = make(web.cohort, cache=tmp_path, cache_bytes=limit, sampling=UniformSampling(8))
    for _ in range(2):
        same(list(stream), make_epoch(cohort, stream.epoch - 1))
        assert used(tmp_path) < 1.5 * limit
    assert used(tmp_path) > 0


def make_epoch(cohort, epoch):
    local = make(cohort, sampling=UniformSampling(8))
    local.seek(epoch)
    return list(local)


def fill(url: str, folder: str, seed: int, results) -> None:
    stream = make(lp.open_cohort(url), cache=folder, cache_bytes=150_000, seed=seed)
    results.put((seed, float(sum(s["image"].astype(np.float64).sum() for s in stream))))


def test_processes_share_a_cache(web, cohort, tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = [(web.url, str(tmp_path), seed, results) for seed in (1, 2)]
    processes = [context.Process(target=fill, args=a) for a in arguments]
    for process in processes:
        process.start()
    sums = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    for seed in (1, 2):
        expected = sum(s["image"].astype(np.float64).sum() for s in make(cohort, seed=seed))
        assert sums[seed] == pytest.approx(float(expected), rel=1e-12)


def test_a_cached_location_pickles(web, tmp_path):
    cached = pickle.loads(pickle.dumps(location_of(web, tmp_path)))
    cached.read("lundprobe.json")
    with web.traffic.counted() as asked:
        cached.read("lundprobe.json")
    assert asked == []


def test_a_cache_that_cannot_be_is_refused(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache folder .*file"):
        location_of(web, tmp_path / "file" / "below")
    with pytest.raises(UsageError, match="a cache of 0 bytes"):
        location_of(web, tmp_path, 0)


def test_who_leaves_a_stream_does_not_wait_for_a_server_that_stalls(web, monkeypatch):
    """Each patch is of another patient; the third is asked for when the second is taken."""
    monkeypatch.setattr(stream_reading, "_CLOSE_TIMEOUT", 0.1)
    stream = make(web.cohort, threads=1, prefetch=1, sampling=UniformSampling(1))
    iterator = iter(stream)
    first = next(iterator)
    with web.traffic.slowed(1.5):
        assert next(iterator)["patient_id"] != first["patient_id"]
        begun = time.monotonic()
        iterator.close()
        assert time.monotonic() - begun < 1.0


def test_what_a_server_sends_is_decoded_by_few_threads_at_a_time(web, cohort, monkeypatch):
    """However many threads wait for the server; of the reads that are decoded as one task."""
    monkeypatch.setattr(decode_pool, "_TURNS", [threading.BoundedSemaphore(1)])
    decoding, most, lock = 0, 0, threading.Lock()
    decode_chunk = ShardCodec.decode_chunk

    def noted(codec, data, out=None):
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        time.sleep(0.001)
        try:
            return decode_chunk(codec, data, out)
        finally:
            with lock:
                decoding -= 1

    monkeypatch.setattr(ShardCodec, "decode_chunk", noted)
    found = list(make(web.cohort, threads=6))
    assert most == 1
    same(found, make(cohort, threads=2))
    assert most == 2  # of a disk, as many as read


def test_a_stream_as_fast_as_its_consumer_leaves_others_a_core(cohort):
    """More threads than cores, and work for all of them all the time."""
    train = make(cohort, threads=2 * cores() + 4, sampling=UniformSampling(3000))
    taken, enough = 0, threading.Event()

    def consume() -> None:
        nonlocal taken
        for taken, _ in enumerate(train):  # noqa: B007
            if enough.is_set():
                return

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        before = taken
        for number in range(3):  # not in the main thread, which waits for nobody
            with ThreadPoolExecutor(1) as pool:
                pool.submit(next, iter(make(cohort, threads=0, seed=number))).result(60)
        assert taken - before < len(train) / 4
        assert consumer.is_alive()
    finally:
        enough.set()
        consumer.join()
