"""Predictions compared with any segmentation: from a place of predictions, from NIfTI files."""

from __future__ import annotations

import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.dataset.predictions import StoredPredictions
from lundprobe_zarr.errors import DatasetError, UnknownLabelError, UsageError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.storage.location import Location

_LABELS = {"background": 0, "Rectum": 1, "CTVT_427": 2, "ignore": 5}


def _moved(patient, structure, by=2, grid="mri"):
    return np.roll(patient.mask(structure, grid).values, by, axis=2)


def _map(patient):
    values = np.zeros(patient.mask("Rectum").shape, np.uint8)
    values[_moved(patient, "Rectum")] = 1
    values[_moved(patient, "CTVT_427")] = 2
    return values


def _affine(patient, grid="mri"):
    return patient.dataset.store(patient.patient_id).grid(grid).affine


def _save(values, affine, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values.transpose(), affine).to_filename(file)


@pytest.fixture
def folder(cohort, tmp_path):
    """What nnU-Net writes: a label map a case, and the dataset.json of the training."""
    out = tmp_path / "nnunet"
    for patient in cohort:
        _save(_map(patient), _affine(patient), out / f"{patient.patient_id}.nii.gz")
    (out / "dataset.json").write_text(json.dumps({"labels": _LABELS, "channel_names": {}}))
    (out / "plans.json").write_text("{}")
    return out


def test_label_maps_are_compared_with_every_source_of_every_patient(cohort, extended, folder):
    frame = lp.agreement(cohort, predictions=folder)
    assert set(frame["b_source"]) == {"nnunet"} or set(frame["b_source"]) == {"files"}
    assert set(frame["structure"]) == {"Rectum", "CTVT_427"}
    clinical = frame[frame["pair"] == "clinical_prediction"]
    assert len(clinical) == 2 * len(cohort)
    of_extended = frame[frame["patient_id"] == extended.patient_id]
    counted = of_extended.groupby("pair").size().to_dict()
    assert counted == {
        "clinical_prediction": 2,
        "nnunet_prediction": 2,
        "fold_prediction": 20,
        "observer_prediction": 16,
    }
    for row in clinical.to_dict("records"):
        patient = cohort[row["patient_id"]]
        reference = patient.mask(row["structure"])
        predicted = _map(patient) == _LABELS[row["structure"]]
        one = lp.compare_masks(reference, reference.copy(data=predicted))
        for name in one.index:
            assert row[name] == pytest.approx(one[name]), name
        both = (reference.values & predicted).sum()
        assert row["dice"] == 2 * both / (reference.values.sum() + predicted.sum())
    observer = of_extended[of_extended["pair"] == "observer_prediction"].iloc[0]
    mask = extended.observers.mask.sel(
        structure=observer["structure"], step=observer["a_step"], observer=observer["a_observer"]
    )
    predicted = mask.copy(data=_map(extended) == _LABELS[observer["structure"]])
    assert observer["hd95_mm"] == lp.compare_masks(mask, predicted)["hd95_mm"]


def test_what_was_not_predicted_is_listed_and_is_in_no_row(cohort, folder):
    (folder / f"{cohort[0].patient_id}.nii.gz").unlink()
    (folder / "newAcq_ffffffffffffffff.nii.gz").write_bytes(b"")
    _save(_map(cohort[1]), _affine(cohort[1]), folder / "case_7.nii.gz")
    frame = lp.agreement(cohort, ["Rectum", "Bladder"], "clinical_prediction", predictions=folder)
    assert set(frame["structure"]) == {"Rectum"}
    assert cohort[0].patient_id not in set(frame["patient_id"])
    assert not (frame["dice"] == 0).any()
    told = {(n["patient_id"], n["structure"]): n["reason"] for n in frame.attrs["not_compared"]}
    assert told[cohort[0].patient_id, None] == "no prediction of this patient"
    assert told[cohort[1].patient_id, "Bladder"] == "this structure was not predicted"
    assert told["newAcq_ffffffffffffffff", None] == "no such patient in the dataset"
    assert told["case_7", None] == "no patient's id"


def test_a_structure_that_the_patient_lacks_is_listed(lacking, tmp_path):
    mask = lacking.mask("Rectum").values
    masks = {"PenileBulb": mask, "Rectum": mask}
    lp.write_prediction(lacking, masks, "unet", {}, to=tmp_path)
    frame = lp.agreement(lacking, predictions=tmp_path)
    assert set(frame["structure"]) == {"Rectum"}
    reasons = {n["structure"]: n["reason"] for n in frame.attrs["not_compared"]}
    assert reasons["PenileBulb"] == "the patient has no such segmentation on the mri grid"


def test_a_clinical_mask_without_a_voxel_is_none(undrawn, tmp_path):
    """As in label maps: nobody delineated the structure, so finding it is no mistake."""
    patient = lp.open_cohort(undrawn)[0]
    masks = {s: patient.mask("Rectum").values for s in ("Bladder", "Rectum")}
    lp.write_prediction(patient, masks, "unet", {}, to=tmp_path)
    frame = lp.agreement(patient, predictions=tmp_path)
    assert set(frame["structure"]) == {"Rectum"}
    reasons = {n["structure"]: n["reason"] for n in frame.attrs["not_compared"]}
    assert reasons == {"Bladder": "the patient has no such segmentation on the mri grid"}


def test_an_empty_prediction_counts_as_one(cohort, folder):
    patient = cohort[0]
    values = _map(patient)
    values[values == 1] = 0
    _save(values, _affine(patient), folder / f"{patient.patient_id}.nii.gz")
    row = lp.agreement(patient, "Rectum", "clinical_prediction", predictions=folder).iloc[0]
    assert (row["dice"], row["b_cc"]) == (0, 0)


def test_written_predictions_and_files_give_the_same_rows(cohort, folder, tmp_path):
    patient = cohort[0]
    labels = {1: "Rectum", 2: "CTVT_427"}
    for name in ("one", "two"):
        lp.write_prediction(patient, _map(patient), name, {}, to=tmp_path / "p", labels=labels)
    written = lp.agreement(patient, predictions=tmp_path / "p")
    opened = lp.agreement(patient, predictions=lp.open_predictions(tmp_path / "p"))
    read = lp.agreement(patient, predictions={"one": folder})
    assert set(written["b_source"]) == {"one", "two"}
    assert written.equals(opened)
    of_one = written[written["b_source"] == "one"].set_index("structure")
    assert of_one.sort_index().equals(read.set_index("structure").sort_index())


def test_a_place_may_hold_predictions_of_both_grids(cohort, tmp_path):
    patient = cohort[0]
    for grid in ("mri", "sct"):
        masks = {"Rectum": patient.mask("Rectum", grid)}
        lp.write_prediction(patient, masks, f"of-{grid}", {}, to=tmp_path, grid=grid)
    for grid, other in (("mri", "sct"), ("sct", "mri")):
        frame = lp.agreement(patient, predictions=tmp_path, grid=grid)
        assert set(frame["b_source"]) == {f"of-{grid}"}
        assert frame["dice"][0] == 1
        [told] = frame.attrs["not_compared"]
        assert told["prediction"] == f"of-{other}"
        assert told["reason"] == f"it is on the {other} grid: give grid={other!r}"


def test_masks_in_a_folder_for_each_patient_are_read(cohort, tmp_path):
    patient = cohort[0]
    for name, structure in (("mask_Rectum", "Rectum"), ("Bladder", "Bladder")):
        mask = _moved(patient, structure).astype(np.float32) * 255
        _save(mask, _affine(patient), tmp_path / "masks" / patient.patient_id / f"{name}.nii.gz")
    strange = tmp_path / "masks" / patient.patient_id / "Rectm.nii.gz"
    _save(np.zeros((3, 3, 3), np.uint8), np.eye(4), strange)
    frame = lp.agreement(patient, predictions=tmp_path / "masks")
    assert set(frame["structure"]) == {"Rectum", "Bladder"}
    assert set(frame["b_source"]) == {"masks"}
    [told] = [n for n in frame.attrs["not_compared"] if n["structure"] == "Rectm"]
    assert "nearest: Rectum" in told["reason"]


_ORDERS = [(a, f) for a, f in product(permutations(range(3)), product((0, 1), repeat=3))][::7]


@pytest.mark.parametrize(("axes", "flips"), _ORDERS)
def test_exchanged_and_reversed_axes_are_turned_exactly(cohort, tmp_path, axes, flips):
    patient = cohort[0]
    image = nib.Nifti1Image(_map(patient).transpose(), _affine(patient))
    order = np.array([[of, -1 if flip else 1] for of, flip in zip(axes, flips, strict=True)])
    image.as_reoriented(order).to_filename(tmp_path / f"{patient.patient_id}.nii.gz")
    labels = {"Rectum": 1, "CTVT_427": 2}
    frame = lp.agreement(patient, predictions={"turned": tmp_path}, labels=labels)
    mask = patient.mask("Rectum")
    expected = lp.compare_masks(mask, mask.copy(data=_map(patient) == 1))
    rectum = frame[frame["structure"] == "Rectum"].iloc[0]
    assert rectum["dice"] == expected["dice"]
    assert rectum["added_path_mm"] == expected["added_path_mm"]


def test_another_lattice_is_an_error_that_names_both(cohort, folder):
    patient = cohort[0]
    file = folder / f"{patient.patient_id}.nii.gz"
    moved = _affine(patient).copy()
    moved[0, 3] += 0.3
    _save(_map(patient), moved, file)
    with pytest.raises(UsageError) as caught:
        lp.agreement(patient, predictions=folder)
    said = str(caught.value)
    assert str(file) in said
    assert f"{moved[0, 3]:.6g}" in said
    assert f"expected the mri grid of patient {patient.patient_id}" in said
    assert f"{_affine(patient)[0, 3]:.6g}" in said


def test_a_prediction_on_the_other_grid_says_which_it_is(cohort, folder):
    patient = cohort[0]
    mask = _moved(patient, "Rectum", grid="sct").astype(np.uint8)
    _save(mask, _affine(patient, "sct"), folder / f"{patient.patient_id}.nii.gz")
    with pytest.raises(UsageError, match="give grid='sct'"):
        lp.agreement(patient, predictions=folder)
    frame = lp.agreement(patient, "Rectum", predictions=folder, grid="sct")
    assert list(frame["pair"]) == ["clinical_prediction"]
    assert 0 < frame["dice"][0] < 1


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda f: (f / "dataset.json").unlink(), UsageError, "copy nnU-Net's dataset.json"),
        (lambda f: (f / "dataset.json").write_text("[]"), UsageError, "no labels in it"),
        (lambda f: (f / "dataset.json").write_text('{"labels": {"Prostate": 1}}'), UsageError,
         "none of which is a structure"),
        (lambda f: (f / "dataset.json").write_text('{"labels": {"Rectum": 1}}'), UsageError,
         "a label map with 2"),
        (lambda f: min(f.glob("*.nii.gz")).write_bytes(b"\x1f\x8b12"), DatasetError,
         "cannot be read as NIfTI"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_named(cohort, folder, change, kind, said):
    change(folder)
    with pytest.raises(kind, match=said) as caught:
        lp.agreement(cohort, predictions=folder)
    assert str(folder) in str(caught.value)


def test_the_ignore_label_is_not_taken_for_background(cohort, folder):
    patient = cohort[0]
    values = _map(patient)
    values[values == 0] = _LABELS["ignore"]
    _save(values, _affine(patient), folder / f"{patient.patient_id}.nii.gz")
    with pytest.raises(UsageError, match="a label map with the ignore label 5") as caught:
        lp.agreement(patient, predictions=folder)
    assert f"{patient.patient_id}.nii.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("{}.nii", "{}.nii.gz"), "{0}.nii and {0}.nii.gz"),
        (("{}/Rectum.nii.gz", "{}/mask_Rectum.nii.gz"),
         "{0}/Rectum.nii.gz and {0}/mask_Rectum.nii.gz"),
        (("{}.nii.gz", "{}/Bladder.nii.gz"), "{0}.nii.gz and {0}/Bladder.nii.gz"),
    ],
)  # fmt: skip
def test_two_files_of_the_same_are_refused(cohort, tmp_path, files, said):
    patient = cohort[0]
    for name in files:
        file = tmp_path / name.format(patient.patient_id)
        _save(_moved(patient, "Rectum").astype(np.uint8), _affine(patient), file)
    with pytest.raises(UsageError) as caught:
        lp.agreement(patient, predictions=tmp_path, labels={1: "Rectum"})
    assert f"two files of the same: {said.format(patient.patient_id)}" in str(caught.value)


def test_fractions_are_no_labels(cohort, folder):
    patient = cohort[0]
    file = folder / f"{patient.patient_id}.nii.gz"
    _save(_map(patient) / np.float32(3), _affine(patient), file)
    with pytest.raises(UsageError, match="fractions"):
        lp.agreement(patient, predictions=folder)


def test_nothing_to_compare_is_an_error_with_the_reasons(cohort, folder, tmp_path):
    with pytest.raises(UnknownLabelError, match="this structure was not predicted"):
        lp.agreement(cohort, "BODY", predictions=folder)
    with pytest.raises(UsageError, match="no predictions"):
        lp.agreement(cohort, predictions=tmp_path / "nothing")
    with pytest.raises(UsageError, match="nearest: clinical_prediction"):
        lp.agreement(cohort, pairs="clinical", predictions=folder)
    with pytest.raises(UsageError, match="without predictions"):
        lp.agreement(cohort, grid="sct")


def test_an_oblique_patient_is_compared_too(askew, tmp_path):
    patient = askew
    lp.write_prediction(patient, {"Rectum": patient.mask("Rectum")}, "same", {}, to=tmp_path)
    assert lp.agreement(patient, predictions=tmp_path)["dice"][0] == 1
    found = lp.open_predictions(tmp_path).mask(patient, "Rectum", "same")
    assert lp.compare_masks(patient.mask("Rectum"), found)["dice"] == 1


def test_masks_are_exported_beside_the_others_with_the_exact_affine(cohort, dataset, tmp_path):
    patient = cohort[0]
    store = patient.dataset.store(patient.patient_id)
    lp.write_prediction(patient, {"Rectum": _moved(patient, "Rectum")}, "a", {}, to=tmp_path / "p")
    on_sct = {"Bladder": _moved(patient, "Bladder", grid="sct")}
    lp.write_prediction(patient, on_sct, "b", {}, to=tmp_path / "p", grid="sct")
    predictions = StoredPredictions(Location(tmp_path / "p"))
    out = tmp_path / "out"
    exported = export_patient(Location(dataset), patient.patient_id, out, predictions=predictions)
    home = f"{store.attributes['part']}Part/{patient.patient_id}"
    assert exported.predicted == (
        f"{home}/MR_StorT2/predictions/a/mask_Rectum.nii.gz",
        f"{home}/sCT/predictions/b/mask_Bladder.nii.gz",
    )
    for path, structure, grid in zip(
        exported.predicted, ("Rectum", "Bladder"), ("mri", "sct"), strict=True
    ):
        image = nib.Nifti1Image.from_filename(out / path)
        np.testing.assert_array_equal(image.affine, store.grid(grid).affine)
        expected = _moved(patient, structure, grid=grid)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(), expected)
        assert image.get_data_dtype() == np.uint8
    assert (out / home / "MR_StorT2/image.nii.gz").is_file()
    with pytest.raises(UnknownLabelError, match="no prediction of patient"):
        export_patient(Location(dataset), cohort[1].patient_id, out, predictions=predictions)
    assert sorted(p.name for p in out.rglob("*Acq_*")) == [patient.patient_id]


def test_exported_masks_are_predictions_again(cohort, dataset, tmp_path):
    patient = cohort[0]
    lp.write_prediction(patient, {"Rectum": _moved(patient, "Rectum")}, "a", {}, to=tmp_path / "p")
    predictions = StoredPredictions(Location(tmp_path / "p"))
    out = tmp_path / "out"
    [path] = export_patient(
        Location(dataset), patient.patient_id, out, predictions=predictions
    ).predicted
    masks = tmp_path / "masks"
    masks.mkdir()
    (out / path).parent.rename(masks / patient.patient_id)
    written = lp.agreement(patient, predictions=tmp_path / "p")
    assert lp.agreement(patient, predictions={"a": masks}).equals(written)
