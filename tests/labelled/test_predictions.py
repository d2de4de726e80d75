"""Predictions written beside a dataset and read back: exact, of this very patient, or refused."""

from __future__ import annotations

import errno
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import lundprobe_zarr as lp
from lundprobe_zarr.errors import (
    DamagedStoreError,
    DatasetError,
    MissingStructureError,
    NotADatasetError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.exchange.predicted_files import PredictedFiles
from lundprobe_zarr.labelled import predictions as predictions_module
from lundprobe_zarr.labelled.grid import grid_of
from lundprobe_zarr.patches.prediction import Prediction
from lundprobe_zarr.stores import prediction as stores_prediction

_MADE = {"model": "unet", "version": "1.2", "folds": [0, 1], "notes": {"loss": "dice"}}


@pytest.fixture(scope="module")
def cohort(dataset):
    return lp.open_cohort(dataset)


@pytest.fixture
def patient(cohort):
    return cohort[0]


def _moved(patient, structure="Rectum", by=2):
    return np.roll(patient.mask(structure).values, by, axis=2)


def _files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_masks_come_back_exactly_with_place_and_provenance(patient, tmp_path):
    masks = {s: _moved(patient, s) for s in ("Bladder", "Rectum")}
    lp.write_prediction(patient, masks, "unet-v1", _MADE, to=tmp_path / "predictions")
    predictions = lp.open_predictions(tmp_path / "predictions")
    assert predictions.names == ["unet-v1"]
    assert predictions.patients("unet-v1") == [patient.patient_id]
    found = predictions.open(patient, "unet-v1").mask
    assert [str(s) for s in found.structure.values] == ["Rectum", "Bladder"]  # canonical order
    for structure, mask in masks.items():
        np.testing.assert_array_equal(found.sel(structure=structure).values, mask)
        np.testing.assert_array_equal(predictions.mask(patient, structure, "unet-v1").values, mask)
    for dim in "zyx":
        np.testing.assert_array_equal(found[dim].values, patient.mri[dim].values)
    assert predictions.provenance(patient, "unet-v1") == _MADE
    table = predictions.table
    assert list(table["structure"]) == ["Rectum", "Bladder"]
    assert list(table["voxels"]) == [masks[s].sum() for s in ("Rectum", "Bladder")]
    assert table["provenance"][0] == _MADE
    assert "unet-v1 (1 patients)" in repr(predictions)


def test_plain_xarray_and_zarr_read_it_with_labels_and_place(patient, tmp_path):
    mask = _moved(patient)
    lp.write_prediction(patient, {"Rectum": mask}, "unet", _MADE, to=tmp_path)
    store = tmp_path / "unet" / "patients" / f"{patient.patient_id}.zarr"
    tree = xr.open_datatree(store, engine="zarr")
    found = tree["mri/prediction"].to_dataset().mask.sel(structure="Rectum")
    np.testing.assert_array_equal(found.values, mask)
    np.testing.assert_array_equal(found.z.values, patient.mri.z.values)
    assert json.loads(tree.attrs["provenance"]) == _MADE
    assert tree.attrs["content_sha256"] == patient.row["content_sha256"]
    tree.close()


def test_it_can_be_compared_with_any_mask_of_the_patient(patient, tmp_path):
    lp.write_prediction(patient, {"Rectum": patient.mask("Rectum")}, "same", {}, to=tmp_path)
    mask = lp.open_predictions(tmp_path).mask(patient, "Rectum", "same")
    assert lp.compare_masks(patient.mask("Rectum"), mask)["dice"] == 1


@pytest.mark.parametrize("labels", [{1: "Rectum", 7: "Bladder"}, {"Rectum": 1, "Bladder": [7]}])
def test_a_label_map_is_split_by_its_labels(patient, tmp_path, labels):
    values = np.zeros(patient.mask("Rectum").shape, np.uint8)
    values[patient.mask("Rectum").values] = 1
    values[patient.mask("Bladder").values] = 7
    lp.write_prediction(patient, values, "map", {}, to=tmp_path, labels=labels)
    predictions = lp.open_predictions(tmp_path)
    for structure, number in (("Rectum", 1), ("Bladder", 7)):
        mask = predictions.mask(patient, structure, "map").values
        np.testing.assert_array_equal(mask, values == number)
    assert not predictions.mask(patient, "Rectum", "map").values[values == 7].any()


def test_regions_of_several_numbers_are_their_union(patient, tmp_path):
    values = np.zeros(patient.mask("CTVT_427").shape, np.int16)
    values[patient.mask("PTVT_427").values] = 1
    values[patient.mask("CTVT_427").values] = 2
    labels = {"PTVT_427": [1, 2], "CTVT_427": 2}
    lp.write_prediction(patient, values, "regions", {}, to=tmp_path, labels=labels)
    mask = lp.open_predictions(tmp_path).mask(patient, "PTVT_427", "regions").values
    np.testing.assert_array_equal(mask, values > 0)


def test_labels_of_a_dataset_json_are_taken_as_they_are(patient, tmp_path):
    labels = {"background": 0, "Rectum": 1, "ignore": 2}
    values = _moved(patient).astype(np.uint8)
    lp.write_prediction(patient, values, "nnunet-801", {}, to=tmp_path, labels=labels)
    predictions = lp.open_predictions(tmp_path)
    assert list(predictions.table["structure"]) == ["Rectum"]
    np.testing.assert_array_equal(
        predictions.mask(patient, "Rectum", "nnunet-801").values, _moved(patient)
    )
    values[0, 0, 0] = 2
    with pytest.raises(UsageError, match="a label map with the ignore label 2"):
        lp.write_prediction(patient, values, "other", {}, to=tmp_path, labels=labels)


def test_what_aggregator_returns_is_taken_as_it_is(patient, tmp_path):
    stored = patient.dataset.store(patient.patient_id).grid("mri")
    values = np.stack([~_moved(patient), _moved(patient)]).astype(np.float32)
    predicted = Prediction(patient.patient_id, values, stored, stored)
    with pytest.raises(UsageError, match="argmax"):
        lp.write_prediction(patient, predicted, "soft", {}, to=tmp_path, labels={1: "Rectum"})
    hard = predicted.map(lambda v: v.argmax(axis=0))
    lp.write_prediction(patient, hard, "hard", {}, to=tmp_path, labels={1: "Rectum"})
    found = lp.open_predictions(tmp_path).mask(patient, "Rectum", "hard").values
    np.testing.assert_array_equal(found, _moved(patient))
    assert not (tmp_path / "soft").exists()


def test_a_prediction_on_another_lattice_or_of_another_patient_is_refused(cohort, tmp_path):
    patient, other = cohort[0], cohort[1]
    stored = patient.dataset.store(patient.patient_id).grid("mri")
    coarse = stored.stepped(np.zeros(3), np.full(3, 2.0), (3, 3, 3))
    values = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(UsageError, match="native"):
        lp.write_prediction(
            patient, Prediction(patient.patient_id, values, coarse, stored), "a", {},
            to=tmp_path, labels={1: "Rectum"},
        )  # fmt: skip
    with pytest.raises(UsageError, match=f"one of {patient.patient_id}"):
        lp.write_prediction(
            patient, Prediction(other.patient_id, values, stored, stored), "a", {}, to=tmp_path
        )
    with pytest.raises(UsageError, match="patient's grid"):
        lp.write_prediction(
            patient, {"Rectum": patient.mask("Rectum", "sct")}, "a", {}, to=tmp_path
        )


def test_masks_of_the_sct_grid_say_so(patient, tmp_path):
    mask = patient.mask("Rectum", "sct")
    lp.write_prediction(patient, mask, "sct", {}, to=tmp_path, labels=None, grid="sct")
    found = lp.open_predictions(tmp_path).mask(patient, "Rectum", "sct")
    np.testing.assert_array_equal(found.values, mask.values)
    assert found.attrs["long_name"] == "predicted segmentation"
    np.testing.assert_array_equal(found.x.values, patient.sct.x.values)


@pytest.mark.parametrize(
    ("masks", "more", "said"),
    [
        (lambda m: m.astype(np.uint8), {}, "without labels"),
        (lambda m: m.astype(np.uint8) * 3, {"labels": {1: "Rectum"}}, "a label map with 3"),
        (lambda m: m.astype(np.uint8), {"labels": {1: "Rectm"}}, "nearest: Rectum"),
        (lambda m: m.astype(float), {"labels": {1: "Rectum"}}, "argmax"),
        (lambda m: m[1:], {"labels": ["Rectum"]}, "a structure for each"),
        (lambda m: np.stack([m, m]), {"labels": ["Rectum"]}, "a structure for each"),
        (lambda m: {"Rectum": m.astype(np.uint8)}, {}, r"astype\(bool\)"),
        (lambda m: {}, {}, "at least one structure"),
        (lambda m: m.astype(np.uint8), {"labels": {"Rectum": "1"}}, "numbers and structures"),
        (lambda m: {"Rectum": m}, {"grid": "dose"}, "'mri' or 'sct'"),
    ],
)
def test_masks_that_do_not_fit_are_refused_and_nothing_is_written(
    patient, tmp_path, masks, more, said
):
    with pytest.raises(lp.LundProbeError, match=said):
        lp.write_prediction(patient, masks(_moved(patient)), "unet", {}, to=tmp_path, **more)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "clinical", "Observer", ".hidden", "a" * 65])
def test_names_that_cannot_be_one_are_refused(patient, tmp_path, name):
    with pytest.raises(UsageError, match="a prediction named"):
        lp.write_prediction(patient, {"Rectum": _moved(patient)}, name, {}, to=tmp_path)


@pytest.mark.parametrize("made", [None, "unet", {"lr": float("nan")}, {"when": object()}])
def test_provenance_has_to_be_what_json_can_hold(patient, tmp_path, made):
    with pytest.raises(UsageError, match="provenance"):
        lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", made, to=tmp_path)


def test_a_dataset_is_never_written_into(patient, dataset):
    before = _files(dataset)
    for place in (dataset, dataset / "patients", dataset / "predictions"):
        with pytest.raises(UsageError, match="beside the dataset"):
            lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=place)
    assert _files(dataset) == before


def test_one_that_is_there_is_kept_unless_it_is_to_be_overwritten(patient, tmp_path):
    first, second = _moved(patient), _moved(patient, by=5)
    lp.write_prediction(patient, {"Rectum": first}, "unet", {"run": 1}, to=tmp_path)
    with pytest.raises(UsageError, match="overwrite=True"):
        lp.write_prediction(patient, {"Rectum": second}, "unet", {"run": 2}, to=tmp_path)
    predictions = lp.open_predictions(tmp_path)
    np.testing.assert_array_equal(predictions.mask(patient, "Rectum", "unet").values, first)
    lp.write_prediction(
        patient, {"Rectum": second}, "unet", {"run": 2}, to=tmp_path, overwrite=True
    )
    predictions = lp.open_predictions(tmp_path)
    np.testing.assert_array_equal(predictions.mask(patient, "Rectum", "unet").values, second)
    assert predictions.provenance(patient, "unet") == {"run": 2}
    assert [p.name for p in (tmp_path / "unet/patients").iterdir()] == [
        f"{patient.patient_id}.zarr"
    ]


def test_a_failure_while_writing_leaves_nothing_and_what_was_there(patient, tmp_path, monkeypatch):
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    before = _files(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores_prediction, "_write_metadata", full)
    with pytest.raises(DatasetError, match="no space"):
        lp.write_prediction(
            patient, {"Rectum": _moved(patient, by=4)}, "unet", {}, to=tmp_path, overwrite=True
        )
    assert _files(tmp_path) == before
    mask = lp.open_predictions(tmp_path).mask(patient, "Rectum", "unet").values
    np.testing.assert_array_equal(mask, _moved(patient))


@pytest.mark.parametrize("taken", ["", "unet", "unet/patients"])
def test_a_place_that_cannot_be_written_is_named(patient, tmp_path, taken):
    file = tmp_path / "predictions" / taken
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a file in the way")
    masks = {"Rectum": _moved(patient)}
    with pytest.raises(DatasetError) as error:
        lp.write_prediction(patient, masks, "unet", {}, to=tmp_path / "predictions")
    assert str(error.value.where).startswith(str(tmp_path / "predictions"))
    assert error.value.finding.startswith("cannot be read or written: ")
    assert error.value.remedy
    assert _files(tmp_path) == [file.relative_to(tmp_path).as_posix()]


def test_a_folder_without_permission_is_named(patient, tmp_path, monkeypatch):
    def refused(folder, final):
        raise PermissionError(errno.EACCES, "Permission denied", str(final))

    monkeypatch.setattr(stores_prediction, "replace_folder", refused)
    with pytest.raises(DatasetError) as error:
        lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    assert error.value.where == str(tmp_path / f"unet/patients/{patient.patient_id}.zarr")
    assert error.value.finding == "cannot be read or written: permission denied"
    assert "choose another place" in error.value.remedy


def test_an_empty_mask_is_a_prediction_of_nothing(patient, tmp_path):
    nothing = np.zeros(patient.mask("Rectum").shape, bool)
    lp.write_prediction(patient, {"Rectum": nothing}, "unet", {}, to=tmp_path)
    predictions = lp.open_predictions(tmp_path)
    assert not predictions.mask(patient, "Rectum", "unet").values.any()
    assert predictions.table["voxels"][0] == 0


def test_one_of_another_patient_or_of_other_contents_is_refused(cohort, tmp_path, dataset):
    patient, other = cohort[0], cohort[1]
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    predictions = lp.open_predictions(tmp_path)
    with pytest.raises(UnknownLabelError, match=f"of patient {other.patient_id}"):
        predictions.open(other, "unet")
    home = tmp_path / "unet/patients"
    shutil.copytree(home / f"{patient.patient_id}.zarr", home / f"{other.patient_id}.zarr")
    with pytest.raises(DamagedStoreError, match=f"it is of patient {patient.patient_id}"):
        predictions.open(other, "unet")


def test_one_of_a_patient_who_was_converted_anew_is_refused(
    patient, tmp_path, dataset, monkeypatch
):
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    monkeypatch.setattr("lundprobe_zarr.dataset.predictions.patient_content", lambda s: "f" * 64)
    with pytest.raises(DatasetError, match=r"was made of contents .*predict and write it again"):
        lp.open_predictions(tmp_path).open(patient, "unet")


def test_the_name_is_that_of_the_folder_also_when_that_is_renamed(patient, tmp_path):
    """Two of one name would be written to the same file by `export`, the second over the first."""
    for by in (1, 2):
        lp.write_prediction(patient, {"Rectum": _moved(patient, by=by)}, "unet", {}, to=tmp_path)
        if by == 1:
            (tmp_path / "unet").rename(tmp_path / "older")
    predictions = lp.open_predictions(tmp_path)
    assert list(predictions.table["prediction"]) == ["older", "unet"]
    found = PredictedFiles.of(predictions.stored, patient.dataset.store(patient.patient_id))
    files = found.write(tmp_path, lambda file: None)
    assert [file.split("/")[-2] for file in files] == ["older", "unet"]
    for by, file in zip((1, 2), files, strict=True):
        values = np.asarray(nib.load(tmp_path / file).dataobj).T
        np.testing.assert_array_equal(values > 0, _moved(patient, by=by))


@pytest.mark.parametrize("form", ["map", "mask", "masks", "structures"])
def test_a_labelled_array_is_taken_by_its_labels_not_by_the_order_of_its_axes(patient, form):
    """With as many voxels along y as along x, the shape does not tell."""
    n = min(patient.mask("Rectum").shape[1:])
    mask = patient.mask("Rectum").isel(y=slice(n), x=slice(n)).load()
    assert not np.array_equal(mask.values, mask.values.transpose(0, 2, 1))
    turned = mask.transpose("z", "x", "y")
    given, labels = {
        "map": (turned.astype(np.uint8), {1: "Rectum"}),
        "mask": (turned.drop_vars("structure", errors="ignore"), "Rectum"),
        "masks": ({"Rectum": turned}, None),
        "structures": (turned.assign_coords(structure="Rectum"), None),
    }[form]
    found = predictions_module._masks(given, labels, patient, grid_of(mask))
    np.testing.assert_array_equal(found["Rectum"], mask.values)


def test_a_labelled_mask_of_another_patient_is_refused_even_on_the_same_grid(cohort):
    patient, other = cohort[0], cohort[1]
    mask = other.mask("Rectum")
    for given, labels in (({"Rectum": mask}, None), (mask.astype(np.uint8), {1: "Rectum"})):
        with pytest.raises(UsageError, match=f"of patient {other.patient_id}"):
            predictions_module._masks(given, labels, patient, grid_of(mask))


def test_a_labelled_mask_is_refused_under_another_structures_name(patient, tmp_path):
    both = patient.clinical.mask.sel(structure=["Bladder", "Rectum"])
    for masks, labels in (
        (both, ["Rectum", "Bladder"]),
        (both.isel(structure=0), "Rectum"),
        ({"Bladder": patient.mask("Rectum")}, None),
    ):
        with pytest.raises(UsageError, match=r"labelled .* as ") as caught:
            lp.write_prediction(patient, masks, "unet", {}, to=tmp_path / "p", labels=labels)
        assert "leave labels out" in str(caught.value.remedy)
    assert not (tmp_path / "p").exists()
    lp.write_prediction(patient, both, "unet", {}, to=tmp_path / "p", labels=["Bladder", "Rectum"])


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda m: m.T, "z, y, x"),
        (lambda m: m.astype("uint8"), r"astype\(bool\)"),
        (lambda m: m * 0.7, "> 0.5"),
    ],
)
def test_the_remedy_fits_what_is_wrong_with_a_mask(patient, tmp_path, change, remedy):
    mask = change(patient.mask("Rectum").values)
    with pytest.raises(UsageError) as caught:
        lp.write_prediction(patient, {"Rectum": mask}, "unet", {}, to=tmp_path / "p")
    assert re.search(remedy, str(caught.value.remedy))


@pytest.mark.parametrize("labels", [{0: "Rectum", 1: "Bladder"}, {"Rectum": [0, 1]}])
def test_background_is_no_structure(patient, tmp_path, labels):
    values = _moved(patient).astype(np.uint8)
    with pytest.raises(UsageError, match="0 for Rectum"):
        lp.write_prediction(patient, values, "shifted", {}, to=tmp_path, labels=labels)


def test_damage_is_found_and_named(patient, tmp_path):
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    store = tmp_path / "unet/patients" / f"{patient.patient_id}.zarr"
    shard = store / "mri/prediction/mask/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedStoreError, match="write this prediction again"):
        lp.open_predictions(tmp_path).mask(patient, "Rectum", "unet").values  # noqa: B018
    root = store / "zarr.json"
    root.write_text(root.read_text().replace('"unet"', '"unit"'))
    with pytest.raises(DamagedStoreError, match="checksum"):
        lp.open_predictions(tmp_path).open(patient, "unet")
    root.write_text("{")
    with pytest.raises(DamagedStoreError, match="not the metadata of a prediction"):
        lp.open_predictions(tmp_path).open(patient, "unet")


def test_what_is_not_there_is_named(patient, tmp_path):
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    predictions = lp.open_predictions(tmp_path)
    with pytest.raises(UnknownLabelError, match="nearest: unet"):
        predictions.open(patient, "unett")
    with pytest.raises(MissingStructureError, match="has no Bladder"):
        predictions.mask(patient, "Bladder", "unet")


@pytest.mark.parametrize("place", ["FOLDER/nope", "memory://nope-of-tests", "FOLDER/file"])
def test_a_place_that_is_not_there_is_an_error(tmp_path, place):
    (tmp_path / "file").write_text("x")
    place = place.replace("FOLDER", str(tmp_path))
    with pytest.raises(NotADatasetError) as raised:
        lp.open_predictions(place)
    assert (raised.value.where, raised.value.finding) == (place, "not there")
    assert "lp.write_prediction" in raised.value.expected
    assert raised.value.remedy is not None
    with pytest.raises(FileNotFoundError):
        lp.open_predictions(place)


def test_an_empty_place_has_no_predictions(patient, tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    predictions = lp.open_predictions(tmp_path)
    assert predictions.names == []
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path)
    shutil.rmtree(tmp_path / "unet/patients" / f"{patient.patient_id}.zarr")
    assert lp.open_predictions(tmp_path).names == []


def test_a_folder_without_predictions_says_what_it_is(dataset, patient, tmp_path):
    with pytest.raises(NotADatasetError, match=r"a converted dataset; .*beside it"):
        lp.open_predictions(dataset)
    lp.write_prediction(patient, {"Rectum": _moved(patient)}, "unet", {}, to=tmp_path / "p")
    with pytest.raises(NotADatasetError, match=r"one prediction; .*last part of the path"):
        lp.open_predictions(tmp_path / "p/unet")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x.nii.gz").write_bytes(b"")
    with pytest.raises(NotADatasetError, match=r"no predictions; .*lp\.agreement"):
        lp.open_predictions(tmp_path / "files")


def test_a_place_in_memory_serves_as_a_bucket(patient):
    place = "memory://predictions-of-tests"
    mask = _moved(patient)
    lp.write_prediction(patient, {"Rectum": mask, "Bladder": mask}, "unet", {}, to=place)
    lp.write_prediction(patient, {"Rectum": mask}, "unet", {"n": 2}, to=place, overwrite=True)
    predictions = lp.open_predictions(place)
    np.testing.assert_array_equal(predictions.mask(patient, "Rectum", "unet").values, mask)
    assert list(predictions.table["structure"]) == ["Rectum"]
    assert predictions.provenance(patient, "unet") == {"n": 2}
