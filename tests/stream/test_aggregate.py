"""Predictions of grid patches put together: what goes in unchanged comes out unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import Content, GridSampling, lattice_of, read_patch
from lundprobe_zarr.patches.aggregate import _owned
from lundprobe_zarr.patches.sampling import Space
from lundprobe_zarr.stores.reader import PatchReader


def grid_stream(cohort, overlap, size=(9, 24, 20), **changes) -> lp.PatchStream:
    return lp.PatchStream(cohort, size, sampling=GridSampling(overlap), dose=True, **changes)


def whole(cohort, patient_id, **content) -> dict:
    reader = PatchReader.open(cohort.location, patient_id)
    made = Content(dose=True, **content)
    shape = lattice_of(reader.metadata, made).shape
    return read_patch(reader, made, (0, 0, 0), shape)


@pytest.mark.parametrize("overlap", [0, (3, 8, 5), (8, 20, 16)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_identity_gives_the_volume(cohort, overlap, shuffle):
    stream = grid_stream(cohort[:2], overlap, shuffle=shuffle, seed=2)
    collected, volumes = lp.Aggregator(stream.plan), {}
    for sample in stream:
        collected.add(sample, np.stack([sample["image"][0], sample["dose"]]))
        if collected.complete(sample["patient_id"]):
            volumes[sample["patient_id"]] = collected.pop(sample["patient_id"])
    assert set(volumes) == set(cohort[:2].ids)
    for patient_id, volume in volumes.items():
        expected = whole(cohort, patient_id)
        np.testing.assert_array_equal(volume[0], expected["image"][0])
        np.testing.assert_array_equal(volume[1], expected["dose"])


def test_the_identity_on_a_respaced_lattice_with_padding(cohort):
    stream = grid_stream(cohort[:1], 2, (80, 24, 200), spacing_mm=3.0, pad="zero")
    collected = lp.Aggregator(stream.plan)
    for sample in stream:
        collected.add(sample, sample["dose"])
    expected = whole(cohort, cohort.ids[0], spacing_mm=3.0)["dose"]
    np.testing.assert_allclose(collected.pop(cohort.ids[0]), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_neighbours_meet_in_the_middle_of_their_overlap(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    axis = GridSampling(overlap).axes(Space((length,) * 3, (size,) * 3))[0]
    owned = _owned(axis, size, length)
    voxels = [v for low, high in owned for v in range(low, high)]
    assert voxels == list(range(length)), "each once"
    for (low, high), start in zip(owned, axis, strict=True):
        assert low == 0 if start == axis[0] else low - start >= overlap // 2, "a halo is left out"
        assert high == length if start == axis[-1] else start + size - high >= overlap // 2


def test_what_does_not_belong_together_is_refused(cohort):
    stream = grid_stream(cohort[:1], 0)
    sample = next(iter(stream))
    collected = lp.Aggregator(stream.plan)
    with pytest.raises(UsageError, match="a patch of \\(9, 24, 20\\)"):
        collected.add(sample, sample["image"][..., :-1])
    collected.add(sample, sample["image"])
    with pytest.raises(UsageError, match="after others"):
        collected.add(sample, sample["dose"])
    with pytest.raises(UsageError, match="none of the grid's"):
        collected.add(sample | {"start": np.array([1, 0, 0])}, sample["image"])
    with pytest.raises(UsageError, match="1 patches were added"):
        collected.pop(cohort.ids[0])
    with pytest.raises(UsageError, match="uniform patches; expected sampling='grid'"):
        lp.Aggregator(lp.PatchStream(cohort, (4, 4, 4)).plan)
