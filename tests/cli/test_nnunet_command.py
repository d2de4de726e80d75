"""`lundprobe-zarr export-nnunet`: what it prints, and what it says of wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lundprobe_zarr as lp

HOW = ("--dataset-id", "801", "--name", "A", "--labels", "CTVT_427,PTVT_427, PenileBulb")


def test_it_says_who_is_there_and_who_is_not(cli, dataset, tmp_path):
    ran = cli("export-nnunet", dataset, tmp_path, *HOW, "--test", "extended", "--folds", "2")
    cohort = lp.open_cohort(dataset)
    lacking = cohort.where("missing_PenileBulb")
    assert ran.status == 0
    assert "looked at" not in ran.out, "that is short without regions"
    assert "3 patients to write." in ran.out
    assert f"{cohort.ids[-1]} written" in ran.out
    assert "CTVT_427   PTVT_427    CTVT_427" in ran.out
    assert f"  {lacking.ids[0]}: lacks PenileBulb" in ran.out
    assert "2 to train with, 1 to test with; 0 of them there before." in ran.out
    assert "Folds: 2 in splits_final.json" in ran.out
    assert "nnUNetv2_plan_and_preprocess -d 801 --verify_dataset_integrity" in ran.out
    again = cli("export-nnunet", dataset, tmp_path, *HOW, "--test", "extended", "--folds", "2")
    assert "Nothing to write." in again.out
    assert "3 of them there before." in again.out
    changed = cli("export-nnunet", dataset, tmp_path, *HOW, "--test", "part = 'base'")
    assert changed.status == 2
    assert "write --overwrite" in changed.err


def test_ignored_patients_and_regions_are_named(cli, dataset, tmp_path):
    ran = cli(
        *("export-nnunet", dataset, tmp_path, *HOW, "--missing", "ignore", "--regions"),
        *("--where", "missing_PenileBulb", "--priority", "PenileBulb", "--workers", "1"),
    )
    assert ran.status == 0
    assert ran.out.index("looked at") < ran.out.index("1 patient to write.")
    assert "With the ignore label: 1 patient" in ran.out
    assert "both" in ran.out
    assert "Folds: none, too few patients" in ran.out
    found = json.loads((tmp_path / "Dataset801_A/dataset.json").read_text())
    assert list(found["labels"]) == ["background", "PTVT_427", "CTVT_427", "PenileBulb", "ignore"]


def test_saved_splits_and_cohorts_say_who(cli, dataset, tmp_path):
    cohort = lp.open_cohort(dataset)
    splits = cohort.split(test=0.25, folds=3)
    splits.save(tmp_path / "splits.json")
    cohort[:2].save(tmp_path / "cohort.json")
    how = ("--name", "A", "--labels", "Rectum", "--fold")
    ran = cli("export-nnunet", dataset, tmp_path, "--dataset-id", 1, *how, tmp_path / "splits.json")
    assert "3 to train with, 1 to test with" in ran.out
    folds = json.loads((tmp_path / "Dataset001_A/splits_final.json").read_text())
    assert folds[0]["val"] == splits.folds[0].val.ids
    ran = cli("export-nnunet", dataset, tmp_path, "--dataset-id", 2, *how, tmp_path / "cohort.json")
    assert "2 to train with, 0 to test with" in ran.out
    ran = cli("export-nnunet", dataset, tmp_path, "--dataset-id", 3, *how, tmp_path / "no.json")
    assert (ran.status, "cannot be read" in ran.err) == (2, True)


def test_a_patient_who_fails_makes_status_1(cli, copied, tmp_path):
    victim = lp.open_cohort(copied).ids[0]
    (copied / "patients" / f"{victim}.zarr" / "zarr.json").unlink()
    ran = cli("export-nnunet", copied, tmp_path / "raw", *HOW, "--folds", "2")
    assert ran.status == 1
    assert "Failed: 1 patient" in ran.out
    assert "writes only what is missing" in ran.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--labels", "Recum"), "nearest: Rectum"),
        (("--labels", ","), "--labels ',': no name in it"),
        (("--labels", "fiducials"), "fiducials are points"),
        (("--labels", "Rectum", "--dataset-id", "1000"), "expected 1 to 999"),
        (("--labels", "Rectum", "--channels", "T2w,sCT", "--grid", "sct"), "choose the mri grid"),
        (("--labels", "Rectum", "--where", "FALSE"), "no patients to train with"),
        (("--labels", "Rectum", "--test", "TRUE"), "no patients to train with"),
    ],
)
def test_wrong_usage_is_said(cli, dataset, tmp_path: Path, options, says):
    ran = cli("export-nnunet", dataset, tmp_path, "--dataset-id", "801", *options)
    assert ran.status == 2
    assert says in ran.err
    assert not list(tmp_path.iterdir())
