"""What a patch holds: the stored voxels, in the place it says, on any grid and spacing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from stored_volumes import cut, stored

from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.patches import Content, lattice_of
from lundprobe_zarr.stores.reader import Part, StoreReader
from lundprobe_zarr.stream.patch import read_patch
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STRUCTURES, TARGETS

SIZE = (6, 11, 9)


def test_a_patch_holds_the_stored_voxels_with_their_labels(cohort, readers):
    content = Content(modalities=("sCT", "T2w"), structures=("Rectum", "CTVT_427"), dose=True)
    patient_id = cohort.ids[0]
    patch = read_patch(readers[patient_id], content, (2, 20, 15), SIZE)
    mri, clinical = stored(cohort, patient_id, "mri"), stored(cohort, patient_id, "mri/clinical")
    for n, modality in enumerate(patch["modality"]):
        expected = cut(mri.image.sel(modality=modality), patch["start"], SIZE)
        assert patch["image"].dtype == mri.image.dtype
        np.testing.assert_array_equal(patch["image"][n], expected)
    for n, structure in enumerate(patch["structure"]):
        expected = cut(clinical.mask.sel(structure=structure), patch["start"], SIZE)
        np.testing.assert_array_equal(patch["mask"][n], expected)
    np.testing.assert_array_equal(patch["dose"], cut(mri.dose, patch["start"], SIZE))
    assert patch["mask"].dtype == bool
    assert patch["present"].tolist() == [True, True]
    assert (patch["modality"], patch["structure"]) == (("sCT", "T2w"), ("Rectum", "CTVT_427"))
    assert patch["patient_id"] == patient_id


def test_the_affine_places_the_patch(cohort, readers):
    patient_id = cohort.ids[0]
    patch = read_patch(readers[patient_id], Content(), (2, 20, 15), SIZE)
    mri = stored(cohort, patient_id, "mri")
    for voxel in ((0, 0, 0), (5, 10, 8), (3, 0, 7)):
        z, y, x = (int(v) for v in patch["start"] + voxel)
        expected = [float(mri.z[z]), float(mri.y[y]), float(mri.x[x])]
        np.testing.assert_allclose(index_to_lps(patch["affine"], voxel), expected, atol=1e-4)


def test_a_structure_that_is_lacking_is_zero_and_not_present(readers, lacking):
    patient_id, structure = lacking
    content = Content(structures=("Bladder", structure), dose=True)
    patch = read_patch(readers[patient_id], content, (0, 0, 0), SIZE)
    assert patch["present"].tolist() == [True, False]
    assert not patch["mask"][1].any()


def test_extended_targets(cohort, readers, extended):
    content = Content(nnunet=True, folds=FOLDS, uncertainty=True, observers=OBSERVERS, steps=(2, 1))
    shape = readers[extended].array("mri/image").volume_shape
    patch = read_patch(readers[extended], content, (0, 0, 0), shape)
    nnunet = stored(cohort, extended, "mri/nnunet")
    observers = stored(cohort, extended, "mri/observers")
    np.testing.assert_array_equal(patch["nnunet_mask"], nnunet["mask"].sel(structure=list(TARGETS)))
    np.testing.assert_array_equal(patch["fold_mask"], nnunet["fold_mask"].values)
    np.testing.assert_array_equal(patch["uncertainty"], nnunet["uncertainty"].values)
    expected = observers["mask"].sel(step=[2, 1]).values
    np.testing.assert_array_equal(patch["observer_mask"], expected)
    flags = observers["present"].sel(step=[2, 1]).values
    np.testing.assert_array_equal(patch["observer_present"], flags)
    assert (patch["target"], patch["step"]) == (TARGETS, (2, 1))
    assert patch["fold_mask"].any()


def test_extended_targets_of_a_base_patient_are_not_present(cohort, readers):
    base = cohort.where("part = 'base'").ids[0]
    content = Content(folds=(3,), uncertainty=True, observers=("obsC",))
    patch = read_patch(readers[base], content, (0, 0, 0), SIZE)
    assert patch["fold_mask"].shape == (2, 1, *SIZE)
    assert patch["observer_mask"].shape == (2, 2, 1, *SIZE)
    assert patch["uncertainty"].dtype == np.float32
    for name in ("fold", "uncertainty", "observer"):
        assert not patch[f"{name}_present"].any()
    assert not patch["fold_mask"].any()


@pytest.mark.parametrize("grid", ["sct", "dose"])
def test_other_grids(cohort, readers, grid):
    patient_id = cohort.ids[-1]
    structures = ("Rectum",) if grid == "sct" else ()
    content = Content(grid=grid, dose=True, structures=structures)
    patch = read_patch(readers[patient_id], content, (1, 2, 3), SIZE)
    data = stored(cohort, patient_id, grid)
    np.testing.assert_array_equal(patch["dose"], cut(data.dose, patch["start"], SIZE))
    if grid == "sct":
        np.testing.assert_array_equal(patch["image"][0], cut(data.image[0], patch["start"], SIZE))
    else:
        assert "image" not in patch


@pytest.mark.parametrize("pad", ["zero", "edge"])
def test_what_is_outside_is_what_the_policy_says(readers, cohort, pad):
    reader = readers[cohort.ids[0]]
    content = Content(structures=("BODY",), dose=True)
    shape = reader.array("mri/image").volume_shape
    size = (shape[0] + 5, 8, shape[2] + 2)
    start = (-2, shape[1] - 4, -1)
    patch = read_patch(reader, content, start, size, pad)
    whole = read_patch(reader, content, (0, 0, 0), shape)
    for name in ("image", "mask", "dose"):
        volume = whole[name][..., shape[1] - 4 :, :]
        widths = [(0, 0)] * (volume.ndim - 3) + [(2, 3), (0, 4), (1, 1)]
        mode = {"zero": "constant", "edge": "edge"}[pad]
        np.testing.assert_array_equal(patch[name], np.pad(volume, widths, mode=mode))


def test_outside_is_an_error_unless_a_policy_says_otherwise(readers, cohort):
    reader = readers[cohort.ids[0]]
    with pytest.raises(UsageError, match=f"beyond the volume of patient {cohort.ids[0]}"):
        read_patch(reader, Content(), (-1, 0, 0), SIZE)
    with pytest.raises(UsageError, match="lies outside"):
        read_patch(reader, Content(), (9999, 0, 0), SIZE, "zero")


def as_sitk(volume: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """A volume (z, y, x) with its affine (voxel -> mm, RAS) as SimpleITK has it (LPS)."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.mark.parametrize("spacing_mm", [1.9, (2.0, 3.3, 1.2)])
@pytest.mark.parametrize("grid", ["mri", "sct"])
def test_resampling_is_what_simpleitk_makes_of_it(readers, cohort, grid, spacing_mm):
    reader = readers[cohort.ids[0]]
    content = Content(grid=grid, structures=("BODY", "Bladder"), dose=True, spacing_mm=spacing_mm)
    lattice = lattice_of(reader.metadata, content)
    size = tuple(min(s, n) for s, n in zip((7, 9, 8), lattice.shape, strict=True))
    whole_content = Content(grid=grid, structures=("BODY", "Bladder"), dose=True)
    shape = reader.array(f"{grid}/image").volume_shape
    whole = read_patch(reader, whole_content, (0, 0, 0), shape)
    room = np.subtract(lattice.shape, size)
    bladder = np.argwhere(read_patch(reader, content, (0, 0, 0), lattice.shape)["mask"][1])
    edge = np.clip(bladder[0] - np.array(size) // 2, 0, room)
    seen = 0
    for start in ((0, 0, 0), edge.tolist(), room.tolist()):
        patch = read_patch(reader, content, start, size)
        like = as_sitk(np.zeros(size, np.uint8), patch["affine"])
        pairs = [(whole[k].astype(np.float32), patch[k]) for k in ("dose",)]
        pairs += [(whole["image"][0].astype(np.float32), patch["image"][0])]
        for stored_mask, mask in zip(whole["mask"], patch["mask"], strict=True):
            pairs += [(stored_mask.astype(np.float32), mask)]
        for volume, found in pairs:
            source = as_sitk(volume, whole["affine"])
            expected = sitk.Resample(source, like, sitk.Transform(), sitk.sitkLinear, -1.0)
            expected = sitk.GetArrayFromImage(expected)
            if found.dtype == bool:
                clear = np.abs(expected - 0.5) > 1e-4  # exact ties are nobody's
                np.testing.assert_array_equal(found[clear], expected[clear] > 0.5)
                seen += int(found.any() and not found.all())
            else:
                tolerance = 1e-4 * max(1, float(np.abs(volume).max()))
                np.testing.assert_allclose(found, expected, atol=tolerance)
    assert seen  # an outline at least once


def test_resampling_is_what_the_accessor_makes_of_it(readers, cohort):
    patient_id = cohort.ids[1]
    masks = ("BODY", "Rectum")
    content = Content(modalities=("T2w", "sCT"), structures=masks, dose=True, spacing_mm=2.1)
    lattice = lattice_of(readers[patient_id].metadata, content)
    patch = read_patch(readers[patient_id], content, (0, 0, 0), lattice.shape)
    expected = cohort[patient_id].mri.lp.resample(2.1)
    np.testing.assert_allclose(patch["image"], expected.image.values, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(patch["dose"], expected.dose.values, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(patch["affine"], expected.lp.affine, atol=1e-9)
    expected = cohort[patient_id].clinical.lp.resample(2.1)
    np.testing.assert_array_equal(patch["mask"], expected.mask.sel(structure=list(masks)).values)
    assert patch["mask"].any(axis=(1, 2, 3)).all()


def test_only_the_needed_region_is_read(readers, cohort, monkeypatch):
    reader = readers[cohort.ids[0]]
    boxes = []
    original = type(reader).read_parts

    def watched(self, parts, into=None):
        boxes.extend(part.box for part in parts)
        return original(self, parts, into)

    monkeypatch.setattr(type(reader), "read_parts", watched)
    patch = read_patch(reader, Content(spacing_mm=1.0, dose=True), (3, 4, 5), (4, 4, 4))
    stored_mm = lattice_of(reader.metadata, Content()).spacing_mm
    assert len(boxes) == 2
    for box in boxes:
        for one, mm in zip(box, stored_mm, strict=True):
            assert one.stop - one.start <= np.ceil(3 / mm) + 2
    assert patch["dose"].shape == (4, 4, 4)


def test_images_may_be_given_a_type(readers, cohort):
    content = Content(image_dtype="float16")
    patch = read_patch(readers[cohort.ids[0]], content, (0, 0, 0), SIZE)
    assert patch["image"].dtype == np.float16


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32"])
def test_a_type_that_cannot_hold_the_image_is_refused_not_wrapped(readers, cohort, dtype):
    content = Content(modalities=("sCT",), image_dtype=dtype)  # HU: negative, and fractions
    with pytest.raises(UsageError, match=rf"image_dtype='{dtype}' cannot hold.*{cohort.ids[0]}"):
        read_patch(readers[cohort.ids[0]], content, (0, 0, 0), SIZE)


def test_whole_numbers_may_be_given_a_type_of_whole_numbers(readers, cohort):
    patch = read_patch(readers[cohort.ids[0]], Content(image_dtype="int32"), (0, 0, 0), SIZE)
    stored = read_patch(readers[cohort.ids[0]], Content(), (0, 0, 0), SIZE)
    assert patch["image"].dtype == np.int32
    np.testing.assert_array_equal(patch["image"], stored["image"])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"grid": "mr"}, UsageError, "grid='mr'"),
        ({"grid": "sct", "modalities": ("T2w",)}, UnknownLabelError, "grid 'sct'.*there are sCT"),
        ({"structures": ("Rektum",)}, UnknownLabelError, "nearest: Rectum"),
        ({"structures": ("Rectum", "Rectum")}, UsageError, "no duplicates"),
        ({"folds": (10,)}, UnknownLabelError, "folds: unknown 10"),
        ({"grid": "sct", "folds": (1,)}, UsageError, "grid='mri'"),
        ({"grid": "dose", "structures": ("BODY",)}, UsageError, "grid 'dose'"),
        ({"grid": "dose"}, UsageError, "patches without content"),
        ({"spacing_mm": -1}, UsageError, "spacing_mm is -1"),
        ({"image_dtype": "bool"}, UsageError, "image_dtype='bool'"),
        ({"image_dtype": "foo"}, UsageError, "image_dtype='foo'"),
        ({"folds": True}, UsageError, r"folds=True; expected which of 0, 1, .*folds=\(0, 1"),
        ({"nnunet": True, "steps": True}, UsageError, "steps=True; expected which of 1, 2"),
    ],
)
def test_content_that_makes_no_sense_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        Content(**arguments)


def test_structures_given_as_one_name_are_one_structure():
    assert Content(structures="Rectum").structures == ("Rectum",)
    assert set(Content(structures=STRUCTURES).structures) == set(STRUCTURES)


def test_a_modality_that_the_patient_lacks_is_said(readers, cohort):
    reader = readers[cohort.ids[0]]
    arrays = {p: a for p, a in reader.metadata.arrays.items() if p != "mri/dose"}
    bare = StoreReader(reader.location, replace(reader.metadata, arrays=arrays))
    with pytest.raises(UnknownLabelError, match="mri/dose"):
        read_patch(bare, Content(dose=True), (0, 0, 0), SIZE)


def test_everything_is_asked_for_at_once(readers, extended, monkeypatch):
    calls = []
    reader = readers[extended]
    read = type(reader).read_parts
    monkeypatch.setattr(type(reader), "read_parts", lambda *a: calls.append(len(a[1])) or read(*a))
    content = Content(structures=("Rectum", "Bladder"), dose=True, folds=(0, 1), uncertainty=True)
    read_patch(reader, content, (0, 0, 0), SIZE)
    assert calls == [1 + 2 + 1 + 4 + 2]


def test_missing_structures_are_no_errors_but_unknown_ones_are(readers, lacking):
    patient_id, structure = lacking
    with pytest.raises(MissingStructureError):
        readers[patient_id].read([("mri/clinical/mask", {"structure": structure})], (slice(1),) * 3)


def test_arrays_to_fill_may_hold_anything(cohort, readers):
    """Chunks that are not stored, and volumes without a voxel that is not zero, are zeros there."""
    reader = readers[cohort.ids[0]]
    box = tuple(slice(1, n - 1) for n in reader.array("mri/image").volume_shape)
    parts = [
        Part(path, index, box)
        for path, array in reader.metadata.arrays.items()
        if path in ("mri/image", "mri/clinical/mask")
        for index in np.ndindex(array.shape[:-3])
        if reader.holds(path, index)
    ]
    expected = reader.read_parts(parts)
    filled = [np.full_like(volume, 1) for volume in expected]
    assert any((a != b).any() for a, b in zip(expected, filled, strict=True))
    for found, wanted in zip(reader.read_parts(parts, lambda: filled), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
