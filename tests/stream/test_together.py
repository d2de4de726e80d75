"""Patches of one patient that are read together: which, and that nobody notices."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lundprobe_zarr as lp
from lundprobe_zarr.errors import StreamError, UsageError
from lundprobe_zarr.patches import GridSampling
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.stream import prefetch
from lundprobe_zarr.stream.prefetch import together
from lundprobe_zarr.stream.stream import SkippedPatchesWarning

SIZE = (6, 12, 12)


def stream_of(cohort, **changes) -> lp.PatchStream:
    arguments = {
        "structures": ("Rectum",),
        "sampling": GridSampling((3, 6, 6)),
        "seed": 3,
    } | changes
    return lp.PatchStream(cohort, SIZE, **arguments)


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 20), st.integers(1, 5))
def test_groups_hold_every_index_once(patients: list[int], reach: int, most: int) -> None:
    indices = [10 + 3 * n for n in range(len(patients))]
    whose = dict(zip(indices, map(str, patients), strict=True))
    groups = list(together(indices, whose.__getitem__, reach, most))
    assert sorted(n for group in groups for n in group) == indices
    assert all(a[0] < b[0] for a, b in pairwise(groups))
    for group in groups:
        assert group == sorted(group)
        assert len({whose[n] for n in group}) == 1
        assert len(group) <= most
        assert (group[-1] - group[0]) // 3 < reach


def test_patches_within_reach_are_grouped() -> None:
    whose = dict(enumerate("abababbbb"))
    found = list(together(range(9), whose.__getitem__, 9, 4))
    assert found == [[0, 2, 4], [1, 3, 5, 6], [7, 8]]
    assert list(together(range(9), whose.__getitem__, 1, 4)) == [[n] for n in range(9)]


def test_what_patches_share_is_decoded_once(cohort, monkeypatch) -> None:
    decoded: Counter[str] = Counter()
    inner = ShardCodec.decode_chunk

    def count(self, *given):
        decoded[threads] += 1
        return inner(self, *given)

    monkeypatch.setattr(ShardCodec, "decode_chunk", count)
    samples = {}
    for threads in ("none", "one"):
        number = 0 if threads == "none" else 1
        samples[threads] = list(stream_of(cohort, threads=number, prefetch=32))
    assert decoded["one"] < 0.7 * decoded["none"]
    for one, other in zip(samples["one"], samples["none"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def damaged(cohort, dataset, tmp_path) -> lp.Cohort:
    """The cohort with one wrong byte in an image, and nothing else wrong."""
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    shards = (copy / "patients" / f"{cohort.ids[0]}.zarr/mri/image/c").rglob("*")
    shard = next(path for path in sorted(shards) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    return lp.open_cohort(copy)


def test_a_patch_that_fails_takes_no_other_with_it(cohort, dataset, tmp_path) -> None:
    copy = damaged(cohort, dataset, tmp_path)
    skipped = {}
    for threads in (0, 2):
        stream = stream_of(copy, threads=threads, retries=0, on_error="skip", prefetch=32)
        with pytest.warns(SkippedPatchesWarning):
            skipped[threads] = [s["index"] for s in stream]
        assert 0 < stream.skipped.total() < len(stream) / 2
    assert skipped[0] == skipped[2]
    with pytest.raises(StreamError, match=f"of patient {cohort.ids[0]}"):
        list(stream_of(copy, threads=2, retries=0, prefetch=32))


@pytest.fixture
def asked_for(monkeypatch) -> list[int]:
    """How many patches each read was asked for, so far."""
    asked: list[int] = []
    inner = prefetch.read_items

    def note(plan, reader, items):
        asked.append(len(items))
        return inner(plan, reader, items)

    monkeypatch.setattr(prefetch, "read_items", note)
    return asked


@pytest.mark.parametrize("most", [1, 2, 5, 8, 13])
def test_no_more_is_read_ahead_than_allowed(cohort, asked_for, most: int) -> None:
    stream = stream_of(cohort, sampling="grid", threads=2, prefetch=most)
    ahead = []
    for given_so_far, _ in enumerate(islice(stream, 60), 1):
        time.sleep(0.002)  # for the threads to read what they may
        ahead.append(sum(asked_for) - given_so_far)
    assert max(ahead) <= most


@pytest.mark.parametrize(("cores", "expected"), [(1, 4), (3, 4), (4, 3), (8, 1)])
def test_few_are_read_together_where_cores_would_wait(
    cohort, asked_for, monkeypatch, cores: int, expected: int
) -> None:
    monkeypatch.setattr(prefetch, "cores", lambda: cores)
    stream = stream_of(cohort, sampling="grid", threads=8, prefetch=16, shuffle=False)
    list(islice(stream, 40))
    assert max(asked_for) == expected


def test_a_mistake_shows_at_its_patch_and_no_earlier(cohort, monkeypatch) -> None:
    inner = prefetch.read_items

    def fail(plan, reader, items):
        if any(item.index == 6 for item in items):
            raise UsageError("a type that cannot hold these values")
        return inner(plan, reader, items)

    monkeypatch.setattr(prefetch, "read_items", fail)
    for threads in (0, 2):
        stream = stream_of(cohort, threads=threads, prefetch=32, shuffle=False)
        found: list[int] = []
        with pytest.raises(UsageError, match="cannot hold"):
            found.extend(sample["index"] for sample in stream)
        assert found == list(range(6))


def test_an_unexpected_error_reaches_the_caller(cohort, monkeypatch) -> None:
    def fail(*given):
        raise UsageError("that should not happen")

    monkeypatch.setattr(prefetch, "read_items", fail)
    with pytest.raises(UsageError, match="that should not happen"):
        list(stream_of(cohort, threads=2))


def test_patches_that_are_resampled_are_read_one_by_one(cohort, monkeypatch) -> None:
    sizes = []
    inner = prefetch.read_items

    def note(plan, reader, items):
        sizes.append(len(items))
        return inner(plan, reader, items)

    monkeypatch.setattr(prefetch, "read_items", note)
    for spacing in (None, 12.0):
        sizes.clear()
        list(stream_of(cohort, threads=1, prefetch=32, spacing_mm=spacing))
        assert max(sizes) == (1 if spacing else 4)
