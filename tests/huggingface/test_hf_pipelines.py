"""What users of `datasets` do with a dataset, done with ours."""

from __future__ import annotations

import pickle
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.huggingface import references as reading
from lundprobe_zarr.huggingface.feature import Voxels
from lundprobe_zarr.huggingface.handles import LazyVoxels

PATCHES = {"patch_size": (4, 12, 12), "modalities": ["T2w"], "structures": ["CTVT_427"]}


def load(dataset, config="slices", **options):
    if config == "patches":
        options = PATCHES | options
    return lp.load_dataset(dataset, config, **{"split": "base", "streaming": True} | options)


def key(row):
    return row["patient_id"], tuple(row["start"]) if "start" in row else row.get("z_index")


def keys(rows):
    return [key(row) for row in rows]


CONFIG = pytest.mark.parametrize("config", ["slices", "patches", "volumes"])
STREAMING = pytest.mark.parametrize("streaming", [True, False])


@STREAMING
def test_filter_and_map_read_only_what_they_look_at(dataset, reads, streaming):
    loaded = load(dataset, streaming=streaming)
    chosen = loaded.filter(lambda row: (row["voxels_CTVT_427"] or 0) > 0)
    rows = list(chosen)
    assert 0 < len(rows) < len(list(loaded))
    assert not reads.voxels
    means = chosen.map(lambda row: {"mean": float(np.asarray(row["image"])[0].mean())})
    for row in means:
        assert isinstance(row["image"], LazyVoxels)
        assert row["mean"] == float(np.asarray(row["image"])[0].mean()) != 0
    assert {name.partition("/c/")[0] for name in reads.voxels} == {"mri/image"}


@STREAMING
def test_map_may_put_voxels_in_place_of_handles(dataset, streaming):
    loaded = load(dataset, streaming=streaming, structures=["CTVT_427"])
    area = loaded.map(
        lambda row: {"area": int(np.asarray(row["mask"]).sum())},
        remove_columns=["image", "mask", "dose"],
    )
    assert [r["area"] for r in area] == [r["voxels_CTVT_427"] or 0 for r in loaded]
    assert "image" not in next(iter(area))


@CONFIG
def test_select_take_skip_batch(dataset, reads, config):
    stream = load(dataset, config)
    rows = list(stream)
    assert list(next(iter(stream.select_columns(["patient_id", "image"])))) == [
        "patient_id",
        "image",
    ]
    assert keys(stream.take(2)) == keys(rows[:2])
    assert keys(stream.skip(2)) == keys(rows[2:])
    assert keys(stream.skip(1).take(1)) == keys(rows[1:2])
    batches = list(stream.batch(2))
    assert len(batches[0]["image"]) == 2
    assert [h for b in batches for h in b["image"]] == [row["image"] for row in rows]
    assert not reads.voxels


@CONFIG
def test_shuffling_changes_the_order_with_the_epoch_and_is_repeatable(dataset, config):
    stream = load(dataset, config, split="base+extended")
    plain = keys(stream)
    shuffled = stream.shuffle(seed=3, buffer_size=8)
    first, again = keys(shuffled), keys(shuffled)
    assert first == again
    if config != "patches":  # whose random places are others then
        assert sorted(first) == sorted(plain)
    epochs = {tuple(first)}
    for epoch in range(1, 5):
        shuffled.set_epoch(epoch)
        epochs.add(tuple(keys(shuffled)))
        assert len(keys(shuffled)) == len(plain)
    assert len(epochs | {tuple(plain)}) > 2
    shuffled.set_epoch(0)
    assert keys(shuffled) == first


@CONFIG
def test_interleave_and_concatenate(dataset, config):
    base, extended = load(dataset, config), load(dataset, config, split="extended")
    mixed = datasets.interleave_datasets([base, extended], stopping_strategy="all_exhausted")
    rows = list(mixed.take(4))
    assert {row["part"] for row in rows} == {"base", "extended"}
    assert all(isinstance(row["image"], LazyVoxels) for row in rows)
    joined = datasets.concatenate_datasets([base, extended])
    assert keys(joined) == keys(base) + keys(extended)


@CONFIG
@pytest.mark.parametrize("ranks", [2, 3])
def test_nodes_share_rows_and_leave_none_out(dataset, reads, config, ranks):
    from datasets.distributed import split_dataset_by_node

    stream = load(dataset, config)
    shares = [keys(split_dataset_by_node(stream, rank, ranks)) for rank in range(ranks)]
    assert sorted(k for share in shares for k in share) == sorted(keys(stream))
    assert all(shares)
    assert not reads.voxels


@CONFIG
@pytest.mark.parametrize("at", [0, 1, 2])
def test_resuming_is_exact(dataset, config, at):
    stream = load(dataset, config, split="base")
    stream.set_epoch(5)
    rows, state, iterator = keys(stream), None, iter(stream)
    for _ in range(at):
        next(iterator)
    state = stream.state_dict() if at else None
    fresh = load(dataset, config, split="base")
    fresh.set_epoch(5)
    if state:
        fresh.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert keys(fresh) == rows[at:]


def test_resuming_in_the_middle_of_a_node_s_formatted_share(dataset, reads):
    from datasets.distributed import split_dataset_by_node

    def stream():
        return split_dataset_by_node(load(dataset, "patches"), 1, 2).with_format("numpy")

    rows = list(stream())
    reading = stream()
    iterator = iter(reading)
    for _ in range(5):
        next(iterator)
    state = reading.state_dict()
    iterator.close()
    reads.clear()
    resumed = stream()
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(rows) - 5
    for one, other in zip(rest, rows[5:], strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["start"], other["start"])


@CONFIG
def test_streams_pickle(dataset, config):
    stream = load(dataset, config)
    again = pickle.loads(pickle.dumps(stream))
    assert keys(again) == keys(stream)
    np.testing.assert_array_equal(
        np.asarray(next(iter(again))["image"]), np.asarray(next(iter(stream))["image"])
    )


def test_patches_read_ahead_of_a_formatted_stream_are_the_same(dataset):
    rows = [list(load(dataset, "patches", read_ahead=n).with_format("numpy")) for n in (0, 1, 5)]
    assert len(rows[0]) == len(rows[1]) == len(rows[2]) == 3 * 8
    for one, *others in zip(*rows, strict=True):
        for other in others:
            for name in ("image", "mask", "dose", "present", "start"):
                np.testing.assert_array_equal(one[name], other[name])


def test_what_is_not_used_is_not_read_ahead(dataset, reads):
    for row in load(dataset, "patches"):
        np.asarray(row["image"])
    assert {name.partition("/c/")[0] for name in reads.voxels} == {"mri/image"}


# multiprocess drops a BytesIO while its buffer is in use: of that Python 3.13.0 complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("config", ["volumes", "slices"])
def test_in_memory_map_in_processes(dataset, config):
    loaded = load(dataset, config, streaming=False)
    mapped = loaded.map(_mean_dose, num_proc=2)
    for row in mapped:
        assert row["mean_dose"] == pytest.approx(float(np.asarray(row["dose"]).mean()))
    indexed = mapped.select([2, 0]).with_format("numpy")
    assert indexed[:]["mean_dose"].shape == (2,)
    assert isinstance(mapped[0]["image"], LazyVoxels)


def _mean_dose(row):
    return {"mean_dose": float(np.asarray(row["dose"]).mean())}


def test_a_second_load_from_the_cache_reads_no_table(dataset, reads):
    options = {"streaming": False, "where": "n_fiducials >= 0"}
    first = load(dataset, "volumes", **options)
    reads.clear()
    second = load(dataset, "volumes", **options)
    assert [name for name in reads if "parquet" in name] == []
    assert list(first) == list(second)
    np.testing.assert_array_equal(np.asarray(second[0]["dose"]), np.asarray(first[0]["dose"]))


def test_what_was_converted_anew_is_not_taken_from_the_cache(copied):
    before = load(copied, "patients", streaming=False)
    shutil.rmtree(copied / "patients" / f"{before[0]['patient_id']}.zarr")
    finalise(copied)
    after = load(copied, "patients", streaming=False)
    assert list(after["patient_id"]) == list(before["patient_id"])[1:]


# Streamed slices have columns that are null in some rows, which datasets cannot make a table of.
@pytest.mark.parametrize(
    ("config", "streaming"),
    [("volumes", True), ("volumes", False), ("patches", True), ("slices", False)],
)
def test_references_to_parquet_and_back(dataset, tmp_path, config, streaming):
    loaded = load(dataset, config, streaming=streaming)
    loaded.to_parquet(tmp_path / "references.parquet")
    plain = pd.read_parquet(tmp_path / "references.parquet")
    assert set(plain["image"][0]) == set(dict(next(iter(loaded))["image"]))
    assert (tmp_path / "references.parquet").stat().st_size < 200_000
    again = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "references.parquet"), split="train"
    )
    rows = list(loaded)
    assert keys(again) == keys(rows)
    np.testing.assert_array_equal(np.asarray(again[1]["mask"]), np.asarray(rows[1]["mask"]))


def test_references_for_those_without_us(dataset, tmp_path):
    loaded = load(dataset, "volumes", streaming=False)
    plain = datasets.Features.from_arrow_schema(loaded.data.schema.remove_metadata())
    loaded.cast(plain).to_parquet(tmp_path / "plain.parquet")
    assert b"LundProbe" not in pq.read_schema(tmp_path / "plain.parquet").metadata[b"huggingface"]


def test_save_to_disk_and_back(dataset, tmp_path):
    loaded = load(dataset, "volumes", streaming=False)
    loaded.save_to_disk(tmp_path / "saved")
    again = datasets.load_from_disk(tmp_path / "saved")
    assert list(again) == list(loaded)
    assert isinstance(again[0]["image"], LazyVoxels)


@CONFIG
def test_columns_without_decoding_are_references(dataset, config, reads):
    stream = load(dataset, config)
    handle = next(iter(stream))["image"]
    cast = stream.cast_column("image", Voxels(decode=False))
    for references in (stream.decode(False), cast, stream.take(2).decode(False)):
        assert type(next(iter(references))["image"]) is dict
        assert next(iter(references))["image"] == dict(handle)
    assert isinstance(next(iter(cast))["dose"], LazyVoxels)
    assert not reads.voxels


@STREAMING
def test_columns_that_are_cast(dataset, streaming):
    loaded = load(dataset, "volumes", streaming=streaming)
    cast = loaded.cast_column("spacing_mm", datasets.List(datasets.Value("string")))
    assert isinstance(next(iter(cast))["spacing_mm"][0], str)
    assert isinstance(next(iter(cast))["image"], LazyVoxels)


@pytest.mark.parametrize("way", ["cast", "numpy", "map", "concatenated"])
def test_what_was_read_ahead_is_not_read_again(dataset, monkeypatch, way):
    read, seen = reading.read_patch, []

    def watched(reader, content, start, *rest):
        seen.append((reader.metadata.patient_id, *start))
        return read(reader, content, start, *rest)

    monkeypatch.setattr(reading, "read_patch", watched)
    stream = load(dataset, "patches", columns=["part", "image"])
    changed = {
        "cast": lambda: stream.cast_column("part", datasets.Value("large_string")),
        "numpy": lambda: stream.map(lambda row: {"a": 1}),
        "map": lambda: stream.map(lambda row: {"mean": np.asarray(row["image"]).mean()}),
        "concatenated": lambda: datasets.concatenate_datasets([stream]),
    }[way]()
    count = sum(1 for _ in changed.with_format("numpy"))
    assert len(seen) == len(set(seen)) == count


def test_num_proc_keep_in_memory_and_download_mode(dataset, reads):
    plain = load(dataset, "patches", streaming=False)
    for options in ({"num_proc": 2}, {"keep_in_memory": True}):
        loaded = load(dataset, "patches", streaming=False, **options)
        assert list(loaded) == list(plain)
    reads.clear()
    again = load(dataset, "patches", streaming=False, download_mode="force_redownload")
    assert list(again) == list(plain)
    assert [name for name in reads if "zarr.json" in name], "rows were made anew"


def test_formats_that_are_tables(dataset):
    frame = next(iter(load(dataset, "slices").with_format("pandas")))
    assert frame["image"][0]["array"] == "mri/image"
    stream = load(dataset, "structures", split="base+extended").with_format("pandas")
    whole = pd.concat(stream.iter(batch_size=7), ignore_index=True)
    assert whole["observer"].notna().sum() == 16
    assert len(whole) == len(list(load(dataset, "structures", split="base+extended")))


def test_rows_kept_beyond_the_end_of_a_stream_can_still_be_read(dataset):
    loaded = load(dataset)
    expected = [np.asarray(row["image"]) for row in loaded]  # from now on it is read ahead
    for kept in (list(loaded), list(loaded.take(5))):
        for row, voxels in zip(kept, expected, strict=False):
            np.testing.assert_array_equal(np.asarray(row["image"]), voxels)
