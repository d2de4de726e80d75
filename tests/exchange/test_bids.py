"""`export --layout bids`: names, sidecars and descriptions; the validator is run by hand."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.exchange import bids
from lundprobe_zarr.exchange.choice import Choice
from lundprobe_zarr.exchange.cohort import export_cohort
from lundprobe_zarr.exchange.shaped import Shape
from lundprobe_zarr.patches.frame import Frame
from lundprobe_zarr.vocabulary.files import KNOWN_FILES

#: Entities in the order of the specification, of those that occur.
_NAME = re.compile(
    r"sub-[0-9A-Za-z]+(_space-(sCT|dose))?(_res-[0-9px]+mm)?(_label-[0-9A-Za-z]+)?"
    r"(_desc-[0-9A-Za-z]+)?_(T2w|ct|dose|mask|uncertainty)\.(nii\.gz|json)"
)
PATIENT = "newAcq_0123456789abcdef"


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bids")
    assert not export_cohort(cohort, out, Shape(layout="bids"), 2).failed
    return out


@pytest.mark.parametrize("frame", [Frame(), Frame(1.5), Frame((3, 1.5, 1), "PTVT_427", 5)])
def test_every_file_has_a_name_of_its_own(frame):
    files = [f for f in KNOWN_FILES.values() if f.kind != "text"]
    paths = [bids.path(f, PATIENT, frame) for f in files]
    assert len(set(paths)) == len(files)
    assert all(_NAME.fullmatch(p.name) for p in paths)
    assert all(
        p.is_relative_to(bids.home(f, PATIENT, frame)) for f, p in zip(files, paths, strict=True)
    )


def test_the_t2w_image_is_raw_and_all_else_is_derived(cohort, whole):
    patient = cohort[0]
    name = bids.subject(patient.patient_id)
    raw = list((whole / name).rglob("*.nii.gz"))
    assert [str(p.relative_to(whole)) for p in raw] == [f"{name}/anat/{name}_T2w.nii.gz"]
    image = nib.load(raw[0])
    np.testing.assert_array_equal(image.affine, patient.mri.image.lp.affine)
    mask = whole / bids.DERIVATIVES / name / "anat" / f"{name}_label-Rectum_desc-clinical_mask"
    found = np.asarray(nib.load(f"{mask}.nii.gz").dataobj)
    np.testing.assert_array_equal(found != 0, patient.mask("Rectum").values.T)
    told = json.loads(Path(f"{mask}.json").read_bytes())
    assert told["Type"] == "ROI"
    assert told["SourceFile"].endswith("MR_StorT2/mask_Rectum.nii.gz")


def test_each_image_has_a_sidecar_and_each_dataset_a_description(whole):
    images = list(whole.rglob("*.nii.gz"))
    assert len(images) > 100
    assert all(Path(str(p).removesuffix(".nii.gz") + ".json").exists() for p in images)
    raw = json.loads((whole / "dataset_description.json").read_bytes())
    derived = json.loads((whole / bids.DERIVATIVES / "dataset_description.json").read_bytes())
    assert (raw["DatasetType"], derived["DatasetType"]) == ("raw", "derivative")
    assert derived["GeneratedBy"][0]["Name"] == "lundprobe-zarr"


def test_participants_list_the_structures_they_lack(cohort, whole):
    with (whole / "participants.tsv").open() as file:
        rows = {r["patient_id"]: r for r in csv.DictReader(file, delimiter="\t")}
    assert list(rows) == cohort.ids
    for patient in cohort:
        row = rows[patient.patient_id]
        assert row["participant_id"] == bids.subject(patient.patient_id)
        assert row["missing_structures"] == ",".join(patient.row["missing_structures"]) or (
            row["missing_structures"] == "n/a" and not len(patient.row["missing_structures"])
        )


def test_resampled_voxels_are_a_derivative_dataset(cohort, tmp_path):
    shape = Shape(frame=Frame((6, 4, 4), "PTVT_427", 5), layout="bids")
    assert not export_cohort(cohort[:1], tmp_path, shape).failed
    about = json.loads((tmp_path / "dataset_description.json").read_bytes())
    assert about["DatasetType"] == "derivative"
    assert not (tmp_path / "derivatives").exists()
    name = bids.subject(cohort.ids[0])
    stem = tmp_path / name / "anat" / f"{name}_res-4x4x6mm_desc-CropPTVT427_T2w"
    told = json.loads(Path(f"{stem}.json").read_bytes())
    assert told["Resolution"] == "4 x 4 x 6 mm, linearly interpolated"
    assert told["SkullStripped"] is False
    assert nib.load(f"{stem}.nii.gz").header.get_zooms() == (4, 4, 6)


def test_an_export_killed_between_its_folders_is_continued(cohort, tmp_path, killed_writer):
    shape = Shape(Choice(arrays=("T2w", "dose")), layout="bids")
    export_cohort(cohort[:1], tmp_path, shape)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    name = bids.subject(cohort.ids[0])
    shutil.rmtree(tmp_path / name)
    (tmp_path / f".{cohort.ids[0]}.partial-{killed_writer}" / name).mkdir(parents=True)
    assert list(export_cohort(cohort[:1], tmp_path, shape).written) == cohort.ids[:1]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_fiducials_are_told_in_millimetres(cohort, whole):
    patient = cohort[0]
    name = bids.subject(patient.patient_id)
    side = f"{name}_label-fiducials_desc-clinical_mask.json"
    told = json.loads((whole / bids.DERIVATIVES / name / "anat" / side).read_bytes())
    found = np.array(told["FiducialPositionsLPS"])
    np.testing.assert_array_equal(found, patient.clinical.fiducial_position.values)


def test_fiducials_without_a_mask_are_told_beside_the_image(one_patient, tmp_path):
    source = Path(shutil.copytree(one_patient / "source", tmp_path / "source"))
    [mask] = source.rglob("mask_MRI_T2_coords_fiducials.nii.gz")
    mask.unlink()
    [files] = take_inventory(source).patients
    assert convert_patient(files, tmp_path / "dataset", "standard").error is None
    finalise(tmp_path / "dataset")
    cohort = open_cohort(tmp_path / "dataset")
    shape = Shape(Choice(arrays=("T2w", "fiducials")), layout="bids")
    assert not export_cohort(cohort, tmp_path / "out", shape).failed
    name = bids.subject(cohort.ids[0])
    told = json.loads((tmp_path / "out" / name / "anat" / f"{name}_T2w.json").read_bytes())
    found = np.array(told["FiducialPositionsLPS"])
    assert len(found)
    np.testing.assert_array_equal(found, cohort[0].clinical.fiducial_position.values)


def test_fiducials_are_told_whatever_blanks_and_marks_their_text_has():
    text = "\ufeff 1.5, -2,\t3e1\r\n\r\n4,5 ,6\r\n"
    assert bids._positions(text) == [[1.5, -2.0, 30.0], [4.0, 5.0, 6.0]]
