"""`lp.torchio_subjects` with TorchIO itself: lazy images, queue, samplers, workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError
from lundprobe_zarr.exchange.nifti import export_patient

torch = pytest.importorskip("torch")
torchio = pytest.importorskip("torchio")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
MASKS = ("CTVT_427", "Rectum")


def make(cohort: lp.Cohort, **changes):
    return lp.torchio_subjects(cohort, **{"images": "T2w", "structures": MASKS} | changes)


def test_images_are_what_torchio_reads_from_the_files(cohort, tmp_path):
    patient_id = cohort.ids[0]
    export_patient(cohort.location, patient_id, tmp_path)
    home = tmp_path / "basePart" / patient_id / "MR_StorT2"
    found = make(cohort, dose=True)[0]
    masks = [home / f"mask_{s}.nii.gz" for s in MASKS]
    for name, expected in (
        ("image", torchio.ScalarImage(home / "image.nii.gz")),
        ("mask", torchio.LabelMap(masks)),
        ("dose", torchio.ScalarImage(home / "dose_interpolated.nii.gz")),
    ):
        assert torch.equal(found[name].data.float(), expected.data.float())
        np.testing.assert_array_equal(found[name].affine, expected.affine)
        assert found[name].spacing == expected.spacing
        assert found[name].orientation == expected.orientation
    assert isinstance(found.image, torchio.ScalarImage)
    assert isinstance(found.mask, torchio.LabelMap)
    assert found.dose.type == "dose"
    assert found.patient_id == patient_id


def test_places_are_told_before_voxels_are_read(web):
    subjects = make(web.cohort, dose=True)
    web.traffic.requests.clear()
    subject = subjects.dry_iter()[0]
    shape, spacing = subject.image.shape, subject.mask.spacing
    assert subject.spatial_shape == shape[1:]
    assert "LPS" in repr(subject.image)
    assert not any("/c/" in r.path for r in web.traffic.requests)
    assert subject.mask.data.shape == (2, *shape[1:])
    assert subject.mask.spacing == spacing
    assert any("mask/c/" in r.path for r in web.traffic.requests)
    assert not any("image/c/" in r.path for r in web.traffic.requests)


def test_crop_and_spacing_are_those_of_the_accessor(cohort):
    found = make(cohort, spacing_mm=5, crop="PTVT_427", margin_mm=15).dry_iter()[1]
    patient = cohort[1]
    boxed = patient.mri.lp.resample(5).lp.crop("PTVT_427", patient, margin_mm=15)
    expected = boxed.image.sel(modality="T2w")
    np.testing.assert_allclose(found.image.affine, expected.lp.affine, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.image.data[0], expected.values.T, rtol=2e-6, atol=1e-3)


def test_a_missing_structure_is_an_error_or_leaves_the_patient_out(cohort):
    with pytest.raises(MissingStructureError, match="structure=PenileBulb"):
        make(cohort, structures="PenileBulb")
    assert len(make(cohort, structures="PenileBulb", missing="skip")) == 3


def test_transforms_copy_and_undo(cohort):
    transform = torchio.Compose(
        [torchio.ToCanonical(), torchio.Resample(8), torchio.RandomFlip(flip_probability=1)]
    )
    found = make(cohort, dose=True, transform=transform)[0]
    assert found.image.orientation == ("R", "A", "S")
    assert found.image.spacing == (8, 8, 8)
    assert set(found.mask.data.unique().tolist()) == {0, 1}
    assert found.apply_inverse_transform(warn=False).image.shape == found.image.shape


@pytest.mark.parametrize("workers", [0, 2])
def test_a_queue_samples_patches_about_labels(cohort, workers):
    sampler = torchio.LabelSampler(12, label_name="mask")
    queue = torchio.Queue(make(cohort), 8, 2, sampler, num_workers=workers)
    batches = list(torchio.SubjectsLoader(queue, batch_size=4))
    assert [b["image"][torchio.DATA].shape for b in batches] == [(4, 1, 12, 12, 12)] * 2
    assert all(b["mask"][torchio.DATA][:, :, 6, 6, 6].any() for b in batches)


def test_patches_of_a_grid_make_the_volume_again(cohort):
    subject = make(cohort)[0]
    sampler = torchio.GridSampler(subject, (16, 16, 8), 4)
    aggregator = torchio.GridAggregator(sampler)
    for batch in torchio.SubjectsLoader(sampler, batch_size=8):
        aggregator.add_batch(batch["image"][torchio.DATA], batch[torchio.LOCATION])
    assert torch.equal(aggregator.get_output_tensor(), subject.image.data)


@pytest.mark.parametrize(
    ("place", "context"),
    [("disk", "fork"), ("web", "fork"), pytest.param("web", "spawn", marks=pytest.mark.slow)],
)
def test_workers_of_a_loader_read_the_same(request, cohort, place, context):
    chosen = cohort if place == "disk" else request.getfixturevalue("web").cohort
    shape = {"spacing_mm": 8, "crop": "PTVT_427", "margin_mm": 10}
    subjects = make(chosen, **shape)
    subjects[0]  # the parent has read, too
    options = {"num_workers": 1, "multiprocessing_context": context}
    loader = torchio.SubjectsLoader(subjects, batch_size=1, **options)
    for batch, expected in zip(loader, make(cohort, **shape).dry_iter(), strict=True):
        assert batch["patient_id"] == [expected.patient_id]
        assert torch.equal(batch["mask"][torchio.DATA][0], expected.mask.data)


def test_subjects_can_be_pickled(cohort):
    subjects = pickle.loads(pickle.dumps(make(cohort)))
    assert torch.equal(subjects[2].mask.data, make(cohort)[2].mask.data)
