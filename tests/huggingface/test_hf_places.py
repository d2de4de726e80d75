"""From servers: how much is asked, several endpoints at once, what fails on the way."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import replace

import datasets
import numpy as np
import pytest

import lundprobe_zarr as lp
from benchmarks.cohort import simulate
from lundprobe_zarr.errors import DamagedStoreError, DatasetError, UsageError
from lundprobe_zarr.huggingface.read_ahead import SkippedRowsWarning, readable
from lundprobe_zarr.huggingface.references import Reference, Row
from tests.anywhere.servers import file_server, s3_server

PATCHES = {"patch_size": (4, 10, 10), "modalities": ["T2w"], "structures": ["CTVT_427"]}


@pytest.fixture(params=["disk", "web", "s3"])
def place(request, dataset):
    """URL and storage options of the dataset."""
    if request.param == "disk":
        return str(dataset), {}
    if request.param == "web":
        return request.getfixturevalue("web")[0], {}
    return request.getfixturevalue("bucket")[:2]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("config", ["structures", "volumes", "slices", "patches"])
def test_the_same_from_everywhere(dataset, place, config, streaming):
    url, options = place
    asked = PATCHES if config == "patches" else {}
    given = dict(options)
    remote = datasets.load_dataset(
        "lundprobe", config, data_files=f"{url}/lundprobe.json", split="base",
        streaming=streaming, storage_options=options, **asked,
    )  # fmt: skip
    assert options == given, "what was passed is as it was"
    local = lp.load_dataset(dataset, config, split="base", streaming=True, **asked)
    for ours, theirs in zip(local.take(3), remote, strict=False):
        for name, value in ours.items():
            if name in ("image", "mask", "dose"):
                np.testing.assert_array_equal(np.asarray(theirs[name]), np.asarray(value))
            else:
                assert theirs[name] == value


def test_the_first_of_467_volumes_takes_three_requests(tmp_path):
    pytest.importorskip("aiohttp")
    simulate(tmp_path, 467)
    with file_server(tmp_path) as (url, traffic):
        with traffic.counted() as asked:
            stream = lp.load_dataset(url, "volumes", split="base+extended", streaming=True)
            row = next(iter(stream))
        assert len(asked) <= 3, asked
        assert row["image"].shape == (2, *row["shape"])
        with traffic.counted() as asked:
            assert sum(1 for _ in stream) == 467
        assert not asked


def test_what_datasets_asks_of_data_files_before_we_do(web):
    """The list in docs/huggingface.md: all of it before the builder is even imported."""
    url, traffic = web
    with traffic.counted() as asked:
        datasets.load_dataset(
            "lundprobe", "volumes", data_files=f"{url}/lundprobe.json", split="base",
            streaming=True,
        )  # fmt: skip
    names = [f"{r.method} {r.path.rpartition('/')[2]}" for r in asked]
    assert names[:3] == ["GET lundprobe.json", "HEAD lundprobe.json", "HEAD lundprobe.json"]
    assert names[3] == "GET lundprobe.json"
    assert not [n for n in names[4:] if "lundprobe.json" in n]


def test_a_predicate_leaves_the_bytes_of_others_alone(web):
    url, traffic = web
    with traffic.counted() as asked:
        stream = lp.load_dataset(
            url, "patches", split="base", streaming=True, where="missing_PenileBulb", **PATCHES
        )
        rows = list(stream.with_format("numpy"))
    stores = {r.path.partition("/patients/")[2].partition("/")[0] for r in asked} - {""}
    assert stores == {f"{row['patient_id']}.zarr" for row in rows}
    assert len(stores) == 1


def test_reading_ahead_overlaps_the_waiting(web):
    url, traffic = web
    waves = {}
    for ahead in (0, 6):
        stream = lp.load_dataset(
            url, "patches", split="base", streaming=True, read_ahead=ahead, block=8, **PATCHES
        ).with_format("numpy")
        with traffic.slowed(0.05):
            before = len(traffic.waves)
            assert sum(1 for _ in stream) == 24
            waves[ahead] = len(traffic.waves) - before
    assert waves[6] < waves[0] / 2, waves


def test_two_endpoints_in_one_process(dataset, copied, bucket, fill_bucket, tmp_path):
    """Two buckets of the same name on two servers, the second dataset with other values."""
    url, options, _ = bucket
    kept = lp.open_cohort(dataset)[0].patient_id
    with s3_server() as (endpoint, traffic):
        other = fill_bucket(endpoint, copied)
        streams = [
            lp.load_dataset(
                url, "volumes", split="base", streaming=True, storage_options=o, where=where
            )
            for o, where in ((options, "true"), (other, f"patient_id = '{kept}'"))
        ]
        rows = list(
            datasets.interleave_datasets(streams, stopping_strategy="all_exhausted").take(2)
        )
        with traffic.counted() as asked:
            np.asarray(rows[1]["dose"])
        assert asked
        with traffic.counted() as asked:
            np.asarray(rows[0]["dose"])
        assert not asked
        in_memory = [
            lp.load_dataset(url, "volumes", split="base", storage_options=o)
            for o in (options, other)
        ]
        endpoints = {rows[0]["dose"]["options"] for rows in in_memory}
        assert len(endpoints) == 2, "the cache tells them apart"


@pytest.fixture
def damaged(copied):
    """A copy of the dataset of which one patient's dose is lost; and that patient."""
    patient_id = lp.open_cohort(copied)[1].patient_id
    (copied / f"patients/{patient_id}.zarr/mri/dose/c/0/0/0").unlink()
    return copied, patient_id


@pytest.mark.parametrize("config", ["volumes", "slices", "patches"])
def test_a_store_that_fails_is_named(damaged, config):
    copy, patient_id = damaged
    options = PATCHES if config == "patches" else {}
    stream = lp.load_dataset(copy, config, split="base", streaming=True, **options)
    read = []
    with pytest.raises(DamagedStoreError, match=rf"{patient_id}.*mri/dose"):
        read.extend(row["patient_id"] for row in stream.with_format("numpy"))
    assert patient_id not in read


@pytest.mark.parametrize("config", ["volumes", "slices", "patches"])
@pytest.mark.parametrize("lost", ["shard", "store"])
def test_what_is_damaged_may_be_skipped_and_is_reported_at_once_and_at_the_end(
    damaged, config, lost
):
    copy, patient_id = damaged
    if lost == "store":
        shutil.rmtree(copy / f"patients/{patient_id}.zarr")
    options = PATCHES if config == "patches" else {}
    stream = lp.load_dataset(copy, config, split="base", streaming=True, on_error="skip", **options)
    others = f"patient_id <> '{patient_id}'"
    sound = lp.load_dataset(copy, config, split="base", streaming=True, where=others, **options)
    for _ in range(2):  # a second time it is told again
        with warnings.catch_warnings(record=True) as caught:
            warnings.resetwarnings()  # pytest's make errors of warnings
            warnings.simplefilter("default")
            warnings.simplefilter("always", SkippedRowsWarning, append=True)
            read = {row["patient_id"] for row in stream}
        assert read == {row["patient_id"] for row in sound}
        first, last = (str(w.message) for w in caught)
        assert first.startswith(f"rows of patient {patient_id} are left out that cannot be read: ")
        assert re.fullmatch(rf"\d+ rows? (were|was) left out, of {patient_id} \(\d+\)", last)


def test_who_stops_early_is_told_of_those_skipped(damaged):
    copy, patient_id = damaged
    stream = lp.load_dataset(copy, "volumes", split="base", streaming=True, on_error="skip")
    assert lp.open_cohort(copy).ids[1] == patient_id
    rows = iter(stream)
    with pytest.warns(SkippedRowsWarning, match=f"rows of patient {patient_id}"):
        assert patient_id not in {next(rows)["patient_id"] for _ in range(2)}


@pytest.mark.parametrize("config", ["volumes", "slices", "patches"])
@pytest.mark.parametrize("status", [403, 401])
def test_access_that_is_denied_is_never_skipped(web, config, status):
    url, traffic = web
    options = PATCHES if config == "patches" else {}
    stream = lp.load_dataset(url, config, split="base", streaming=True, on_error="skip", **options)
    traffic.fail = lambda method, path: status if "/patients/" in path else None
    try:
        with pytest.raises(DatasetError, match="access denied"):
            next(iter(stream))
    finally:
        traffic.fail = lambda method, path: None


def test_what_was_asked_wrongly_is_never_skipped(dataset):
    stream = lp.load_dataset(
        dataset, "patches", split="base", streaming=True, on_error="skip", **PATCHES
    )
    beyond = [r | {"start": [0, 0, 0]} for r in stream.take(1)]
    reference = Reference.of(beyond[0]["image"])
    row = Row({"image": replace(reference, stop=(99, 99, 99))}, set())
    with pytest.raises(UsageError, match="reaches beyond the volume"):
        list(readable([(0, {"patient_id": "x"}, row)]))


@pytest.mark.parametrize("config", ["slices", "patches"])
@pytest.mark.parametrize("read_ahead", [0, 2])
def test_what_was_read_ahead_is_skipped_too(dataset, damaged, config, read_ahead):
    copy, patient_id = damaged
    options = (PATCHES if config == "patches" else {}) | {"read_ahead": read_ahead}
    options |= {"split": "base", "streaming": True, "on_error": "skip"}

    def patients(place):
        for row in lp.load_dataset(place, config, **options):
            np.asarray(row["dose"])  # so that it is read ahead from now on
            np.asarray(row["image"])
            yield row["patient_id"]

    sound = [i for i in patients(dataset) if i != patient_id]
    with pytest.warns(SkippedRowsWarning, match=patient_id):
        assert list(patients(copy)) == sound


def test_resuming_counts_rows_that_were_skipped(damaged):
    copy, _ = damaged

    def stream():
        return lp.load_dataset(
            copy, "slices", split="base", streaming=True, on_error="skip",
            columns=["z_index", "dose", "patient_id"],
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRowsWarning)
        rows = [(r["patient_id"], r["z_index"]) for r in stream()]
        last_before = max(n for n in range(1, len(rows)) if rows[n][0] != rows[n - 1][0])
        for at in (last_before - 1, last_before, last_before + 1):
            reading = stream()
            iterator = iter(reading)
            for _ in range(at):
                next(iterator)
            resumed = stream()
            resumed.load_state_dict(reading.state_dict())
            assert [(r["patient_id"], r["z_index"]) for r in resumed] == rows[at:]


def test_nothing_is_skipped_unasked(damaged):
    copy, _ = damaged
    stream = lp.load_dataset(copy, "volumes", split="base", streaming=True)
    assert len(list(stream)) == 3
