"""Predictions of grid patches put together: what goes in unchanged comes out unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import Content, GridSampling, lattice_of
from lundprobe_zarr.patches.aggregate import _owned
from lundprobe_zarr.patches.sampling import Space
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.patch import read_patch


def grid_stream(cohort, overlap, size=(9, 24, 20), **changes) -> lp.PatchStream:
    return lp.PatchStream(cohort, size, sampling=GridSampling(overlap), dose=True, **changes)


def whole(cohort, patient_id, **content) -> dict:
    reader = StoreReader.open(cohort.location, patient_id)
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
    with pytest.raises(UsageError, match="not part of the grid"):
        collected.add(sample | {"start": np.array([1, 0, 0])}, sample["image"])
    with pytest.raises(UsageError, match="1 patches were added"):
        collected.pop(cohort.ids[0])
    with pytest.raises(UsageError, match="1 patches were added"):
        collected.finish(cohort.ids[0])
    with pytest.raises(UsageError, match="no patient 'nope' in the cohort of this stream"):
        collected.finish("nope")
    with pytest.raises(UsageError, match="uniform patches; expected sampling='grid'"):
        lp.Aggregator(lp.PatchStream(cohort, (4, 4, 4)).plan)


def random_predictions(stream, channels=2, seed=5):
    rng = np.random.default_rng(seed)
    return [(s, rng.random((channels, *s["dose"].shape), np.float32)) for s in stream]


@pytest.mark.parametrize("blend", ["average", "hann", "gaussian"])
@pytest.mark.parametrize("pad", ["error", "zero"])
def test_blended_patches_are_the_weighted_mean(cohort, blend, pad):
    """Against weights written out as TorchIO and MONAI have them, voxel by voxel."""
    size = (9, 24, 20) if pad == "error" else (200, 24, 20)
    stream = grid_stream(cohort[:1], (3, 8, 5), size, pad=pad)
    collected, added = lp.Aggregator(stream.plan, blend=blend), random_predictions(stream)
    along = {
        "average": np.ones,
        "hann": lambda n: np.hanning(n + 2)[1:-1],
        "gaussian": lambda n: np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / (2 * (n / 8) ** 2)),
    }[blend]
    weights = np.einsum("z,y,x->zyx", *(along(n) for n in size))
    weights = np.maximum(weights, 1e-3) if blend == "gaussian" else weights
    shape = stream.plan.space(cohort.ids[0]).shape
    margin = 200
    total, sums = np.zeros([n + 2 * margin for n in shape]), None
    sums = np.zeros((2, *total.shape))
    for sample, prediction in added:
        collected.add(sample, prediction)
        box = tuple(
            slice(int(a) + margin, int(a) + margin + s)
            for a, s in zip(sample["start"], size, strict=True)
        )
        sums[(..., *box)] += weights * prediction
        total[box] += weights
    inner = tuple(slice(margin, margin + n) for n in shape)
    expected = sums[(..., *inner)] / total[inner]
    found = collected.pop(cohort.ids[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_blending_refuses_labels_and_a_patch_twice(cohort):
    stream = grid_stream(cohort[:1], (3, 8, 5))
    sample = next(iter(stream))
    collected = lp.Aggregator(stream.plan, blend="hann")
    with pytest.raises(UsageError, match=r"of int64 predictions .* expected floats"):
        collected.add(sample, np.ones((9, 24, 20), np.int64))
    collected.add(sample, sample["dose"])
    with pytest.raises(UsageError, match="was added before"):
        collected.add(sample, sample["dose"])
    with pytest.raises(UsageError, match="blend='mean'; expected one of crop, average, hann"):
        lp.Aggregator(stream.plan, blend="mean")


def finished(cohort, predict, **changes) -> lp.Prediction:
    stream = grid_stream(cohort[:1], (2, 4, 4), **changes)
    collected = lp.Aggregator(stream.plan)
    for sample in stream:
        collected.add(sample, predict(sample))
    return collected.finish(cohort.ids[0])


def test_a_prediction_is_saved_with_the_stored_affine_and_its_channels(cohort, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    found = finished(cohort, lambda s: np.stack([s["dose"], 2 * s["dose"]]))
    patient = cohort[0]
    affine = np.reshape(patient.tree["mri"].attrs["affine"], (4, 4))
    np.testing.assert_array_equal(found.affine, affine)
    assert found.native() is found
    found.save(tmp_path / "p.nii.gz")
    image = nibabel.load(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(image.affine, affine)
    expected = patient.mri.dose.values.transpose()
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0], expected)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 1], 2 * expected)
    assert [p.name for p in tmp_path.iterdir()] == ["p.nii.gz"]
    with pytest.raises(UsageError, match=r"expected a name that ends in \.nii\.gz or \.nii"):
        found.save(tmp_path / "p.mha")
    with pytest.raises(UsageError, match="nowhere: no such folder; expected a folder; make it"):
        found.save(tmp_path / "nowhere" / "p.nii.gz")


def test_back_from_a_resampled_lattice_every_value_is_in_its_place(cohort):
    """Of a field linear in space, linear interpolation is exact but at the rim."""
    changes = {"spacing_mm": 3.5, "size": (8, 16, 16), "pad": "zero"}

    def place(sample):
        k, j, i = np.indices(sample["dose"].shape)
        at = np.einsum("ab,b...->a...", sample["affine"], np.stack([i, j, k, np.ones_like(i)]))
        return (at[0] + 2 * at[1] - at[2]).astype(np.float32)

    found = finished(cohort, place, **changes)
    native = found.native()
    image = cohort[0].mri.dose
    assert native.values.shape == image.shape
    np.testing.assert_array_equal(
        native.affine, np.reshape(cohort[0].tree["mri"].attrs["affine"], (4, 4))
    )
    k, j, i = np.indices(image.shape)
    at = np.einsum("ab,b...->a...", native.affine, np.stack([i, j, k, np.ones_like(i)]))
    inner = (slice(4, -4),) * 3
    expected = at[0] + 2 * at[1] - at[2]
    np.testing.assert_allclose(native.values[inner], expected[inner], atol=1e-3)


def test_labels_go_back_to_the_nearest_voxel_and_masks_stay_masks(cohort):
    changes = {"spacing_mm": 3.0, "size": (8, 16, 16), "pad": "zero"}
    labels = finished(cohort, lambda s: (s["dose"] > 20).astype(np.uint8) * 7, **changes).native()
    assert labels.values.dtype == np.uint8
    assert set(np.unique(labels.values)) == {0, 7}
    mask = finished(cohort, lambda s: s["dose"] > 20, **changes)
    assert mask.native().values.dtype == bool
    one = mask.map(lambda v: v.astype(np.float16))
    assert one.native().values.dtype == np.float32
    with pytest.raises(UsageError, match=r"on the lattice's"):
        mask.map(lambda v: v[..., 1:])
    with pytest.raises(UsageError, match="order=3"):
        mask.native(order=3)


def test_batches_are_added_whole(cohort):
    torch = pytest.importorskip("torch")
    stream = grid_stream(cohort[:1], 0, shuffle=False)
    collected = lp.Aggregator(stream.plan)
    for batch in lp.torch_dataset(stream, batch_size=3):
        collected.add_batch(batch, batch["dose"][:, None])
    expected = torch.from_numpy(whole(cohort, cohort.ids[0])["dose"])
    assert torch.equal(torch.from_numpy(collected.pop(cohort.ids[0]))[0], expected)
    with pytest.raises(UsageError, match="1 predictions for a batch of"):
        collected.add_batch(batch | {"patient_id": ["a", "b"]}, batch["dose"][:1])
