"""`export` of a cohort, of a choice of files, cropped and resampled; each voxel is checked."""

from __future__ import annotations

import errno
import gzip
import json
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import lundprobe_zarr as lp
from lundprobe_zarr.cli.shapes import _cropped, _spacing
from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.exchange import shaped
from lundprobe_zarr.exchange.choice import Choice
from lundprobe_zarr.exchange.cohort import JOURNAL, REPORT, CohortExport, export_cohort
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.exchange.shaped import Shape
from lundprobe_zarr.patches.frame import Frame

T2W, DOSE, PTV = "MR_StorT2/image", "MR_StorT2/dose_interpolated", "MR_StorT2/mask_PTVT_427"
FEW = Choice(arrays=("T2w", "mask"), structures=("Rectum", "Genitalia"), grids=("mri",))


def export(cohort: lp.Cohort, out: Path, **shape: object) -> CohortExport:
    return export_cohort(cohort, out, Shape(**shape), 2)


def home(out: Path, patient: lp.Patient) -> Path:
    return out / f"{patient.row['part']}Part" / patient.patient_id


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Uncompressed contents of every file that is seen, by path."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): gzip.decompress(p.read_bytes())
        if p.suffix == ".gz"
        else p.read_bytes()
        for p in files
        if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    }


def test_files_of_a_cohort_are_those_of_each_patient(cohort, tmp_path):
    done = export(cohort, tmp_path / "all")
    assert set(done.written) == set(cohort.ids)
    for patient_id in cohort.ids:
        export_patient(cohort.location, patient_id, tmp_path / "one")
    found = bytes_of(tmp_path / "all")
    del found[REPORT]
    assert found == bytes_of(tmp_path / "one")


def test_python_writes_what_the_command_writes(cohort, tmp_path):
    asked = []
    done = lp.export_nifti(
        cohort, tmp_path / "public", arrays=("T2w", "mask"), structures=["Rectum", "Genitalia"],
        grids="mri", crop="Rectum", margin_mm=10, spacing_mm=6, workers=2, on_patient=asked.append,
    )  # fmt: skip
    assert isinstance(done, lp.CohortExport)
    assert sorted(asked) == sorted(done.written) == sorted(cohort.ids)
    export(cohort, tmp_path / "own", choice=FEW, frame=Frame(6, "Rectum", 10))
    assert bytes_of(tmp_path / "public") == bytes_of(tmp_path / "own")


def test_python_writes_one_patient_and_continues(cohort, tmp_path):
    patient = cohort[0]
    first = lp.export_nifti(patient, tmp_path, arrays="T2w")
    assert list(first.written) == [patient.patient_id]
    again = lp.export_nifti(patient, tmp_path, arrays="T2w")
    assert (list(again.written), list(again.before)) == ([], [patient.patient_id])


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"arrays": "T1w"}, "T1w"),
        ({"layout": "dicom"}, "layout 'dicom'"),
        ({"workers": 0}, "workers=0"),
        ({"margin_mm": 5}, "margin_mm=5"),
    ],
)
def test_python_refuses_options(cohort, tmp_path, options, finding):
    with pytest.raises((UsageError, UnknownLabelError)) as error:
        lp.export_nifti(cohort, tmp_path / "out", **options)
    assert finding in error.value.finding
    with pytest.raises(UsageError, match="a patient or a cohort"):
        lp.export_nifti(cohort.ids, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spacing", [None, 6.0, (7.0, 5.0, 4.0)])
def test_voxels_and_places_are_those_of_the_accessor(cohort, tmp_path, spacing):
    patient = cohort.where("part = 'extended'")[0]
    done = export(cohort[[patient.patient_id]], tmp_path, frame=Frame(spacing, "PTVT_427", 20))
    assert not done.failed
    groups = {
        "mri/image": patient.mri, "mri/dose": patient.mri, "mri/clinical/mask": patient.clinical,
        "mri/nnunet/uncertainty": patient.nnunet, "mri/observers/mask": patient.observers,
        "sct/image": patient.sct, "sct/clinical/mask": patient.tree["sct/clinical"].to_dataset(),
        "dose/dose": patient.dose,
    }  # fmt: skip
    region = patient.mri.lp.region("PTVT_427", patient)
    compared = 0
    for array, record in patient.dataset.store(patient.patient_id).records:
        if array is None or array.spec.path not in groups:
            continue
        data = groups[array.spec.path][array.spec.variable].sel(record.labels)
        data = data if spacing is None else data.lp.resample(spacing)
        own = region if array.spec.grid == "dose" else data.lp.region("PTVT_427", patient)
        expected = data.lp.crop(own, margin_mm=20)
        if array.spec.is_mask and not expected.values.any():
            assert record.path in done.written[patient.patient_id].empty
            assert not (tmp_path / record.path).exists()
            continue
        image = nib.load(tmp_path / record.path)
        exact = spacing is None or array.spec.is_mask  # else float32 sums in another order
        found, allowed = np.asarray(image.dataobj), 0 if exact else 2e-6
        np.testing.assert_allclose(found, expected.values.T, rtol=allowed, atol=500 * allowed)
        np.testing.assert_allclose(image.affine, expected.lp.affine, rtol=0, atol=1e-4)
        compared += 1
    assert compared > 30


def test_values_are_those_that_simpleitk_interpolates(cohort, tmp_path, phantom_source):
    patient = cohort[0]
    export(cohort[:1], tmp_path, frame=Frame(5.0, "PTVT_427", 10))
    for name in (T2W, DOSE):
        image = sitk.ReadImage(home(tmp_path, patient) / f"{name}.nii.gz")
        source = sitk.ReadImage(home(phantom_source, patient) / f"{name}.nii.gz", sitk.sitkFloat64)
        expected = sitk.GetArrayFromImage(sitk.Resample(source, image, sitk.Transform()))
        np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected, atol=2e-3, rtol=1e-5)


def test_an_oblique_grid_keeps_its_exact_affine(oblique, tmp_path):
    patient = oblique[0]
    done = export(oblique, tmp_path, frame=Frame(None, "PTVT_427", 20))
    assert not done.failed
    expected = patient.mri.image.sel(modality="T2w").lp.crop("PTVT_427", patient, margin_mm=20)
    image = nib.load(home(tmp_path, patient) / f"{T2W}.nii.gz")
    np.testing.assert_array_equal(image.affine, np.float32(expected.lp.affine))
    np.testing.assert_array_equal(image.get_fdata(), expected.values.T)
    assert int(image.header["sform_code"]) == 1


def test_a_choice_of_files_holds_the_bytes_of_the_source(cohort, tmp_path):
    export(cohort, tmp_path / "few", choice=FEW)
    export_patient(cohort.location, cohort.ids[0], tmp_path / "one")
    everything = bytes_of(tmp_path / "one")
    found = bytes_of(tmp_path / "few")
    mine = {p: data for p, data in found.items() if cohort.ids[0] in p}
    assert {Path(p).name for p in mine} == {
        "image.nii.gz", "mask_Rectum.nii.gz", "mask_Genitalia.nii.gz",
    }  # fmt: skip
    assert all(everything[p] == data for p, data in mine.items())


def test_a_missing_organ_has_no_file_and_is_in_the_report(cohort, tmp_path):
    patient = cohort.where("missing_Genitalia")[0]
    export(cohort, tmp_path, choice=FEW)
    path = f"basePart/{patient.patient_id}/MR_StorT2/mask_Genitalia.nii.gz"
    assert not (tmp_path / path).exists()
    report = json.loads((tmp_path / REPORT).read_bytes())
    assert report["patients"][patient.patient_id]["missing"] == [path]
    assert report["shape"]["structures"] == ["Rectum", "Genitalia"]
    others = [p for i, p in report["patients"].items() if i != patient.patient_id]
    assert len(others) == 3
    assert not any(p["missing"] for p in others)


def test_what_base_patients_never_have_is_missing_if_it_was_asked_for(cohort, tmp_path):
    base = cohort.where("part = 'base'")[:1]
    done = export(base, tmp_path / "a", choice=Choice(arrays=("mask",), sources=("nnunet",)))
    assert [Path(p).name for p in done.written[base.ids[0]].missing] == [
        "mask_CTVT_427_nnUNet.nii.gz", "mask_Rectum_nnUNet.nii.gz",
    ]  # fmt: skip
    assert export(base, tmp_path / "b").written[base.ids[0]].missing == []


def test_the_same_call_continues_and_mends(cohort, tmp_path):
    export(cohort[:2], tmp_path, choice=FEW)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    image = home(tmp_path, cohort[0]) / f"{T2W}.nii.gz"
    image.write_bytes(b"cut short")
    done = export(cohort, tmp_path, choice=FEW)
    assert list(done.before) == [cohort.ids[1]]
    assert set(done.written) == set(cohort.ids) - {cohort.ids[1]}
    assert nib.load(image).shape == cohort[0].mri.image.shape[:0:-1]
    kept = [p for p in before if cohort.ids[1] in str(p)]
    assert kept
    assert all(p.stat().st_mtime_ns == before[p] for p in kept)
    report = json.loads((tmp_path / REPORT).read_bytes())
    assert list(report["patients"]) == cohort.ids


def test_an_export_of_another_kind_is_refused(cohort, tmp_path):
    export(cohort[:1], tmp_path, choice=FEW)
    with pytest.raises(UsageError, match=r"spacing_mm None, not \[3\.0, 3\.0, 3\.0\]"):
        export(cohort[:1], tmp_path, choice=FEW, frame=Frame(3))


def test_a_folder_of_somebody_else_is_left_alone(cohort, tmp_path):
    theirs = home(tmp_path, cohort[0])
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("mine")
    done = export(cohort[:2], tmp_path, choice=FEW)
    assert "exists already" in done.failed[cohort.ids[0]]
    assert (theirs / "notes.txt").read_text() == "mine"
    assert list(done.written) == [cohort.ids[1]]


def test_a_journal_names_no_folder_but_a_patients(cohort, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    export(cohort[:1], out, choice=FEW)
    entry = out / JOURNAL / f"{cohort.ids[0]}.json"
    told = json.loads(entry.read_bytes())
    entry.write_text(json.dumps(told | {"homes": ["../other"], "files": {"x": 1}}))
    assert cohort.ids[0] in export(cohort[:1], out, choice=FEW).failed
    assert other.is_dir()


def test_a_full_disk_leaves_no_file_under_its_name_and_is_continued(cohort, tmp_path, monkeypatch):
    write, calls = shaped.write_nifti, []

    def full(reader, array, record, target, shown):
        calls.append(shown)
        if len(calls) >= 3:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "no space left on the device", str(shown))
        write(reader, array, record, target, shown)

    monkeypatch.setattr(shaped, "write_nifti", full)
    with pytest.raises(OSError, match="no space"):
        export_cohort(cohort[:2], tmp_path / "out", Shape(FEW), 1)
    assert bytes_of(tmp_path / "out").keys() <= {REPORT}
    assert not list((tmp_path / "out").glob(".*.partial*"))
    monkeypatch.setattr(shaped, "write_nifti", write)
    export(cohort[:2], tmp_path / "out", choice=FEW)
    export(cohort[:2], tmp_path / "whole", choice=FEW)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_an_interrupt_stops_within_a_patient(cohort, tmp_path, monkeypatch):
    write, begun, calls = shaped.write_nifti, threading.Event(), []

    def slow(reader, *rest):
        if reader.metadata.patient_id == cohort.ids[1]:
            calls.append(rest)
            begun.set()
            time.sleep(0.3)
        write(reader, *rest)

    def interrupt(patient_id: str) -> None:
        assert begun.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(shaped, "write_nifti", slow)
    with pytest.raises(KeyboardInterrupt):
        export_cohort(cohort[:2], tmp_path, Shape(), 1, interrupt)
    assert len(calls) < 5
    assert not list(tmp_path.glob(".*.partial*"))
    assert not home(tmp_path, cohort[1]).exists()
    monkeypatch.setattr(shaped, "write_nifti", write)
    assert list(export(cohort[:2], tmp_path).before) == cohort.ids[:1]


def test_another_export_of_the_same_patient_takes_nothing_away(cohort, tmp_path):
    written: list[str] = []

    def meanwhile(path: str) -> None:
        written.append(path)
        if len(written) == 3:
            with pytest.raises(KeyboardInterrupt):
                export_patient(cohort.location, cohort.ids[0], tmp_path, interrupted)

    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    export_patient(cohort.location, cohort.ids[0], tmp_path, meanwhile)
    assert len(written) > 20
    assert all((tmp_path / path).is_file() for path in written)
    assert not list(tmp_path.glob(".*"))


def test_patients_that_another_process_wrote_meanwhile_are_reported(cohort, tmp_path):
    def other(patient_id: str) -> None:
        export(cohort[1:2], tmp_path, choice=FEW, layout="bids")

    export_cohort(cohort[:1], tmp_path, Shape(FEW, layout="bids"), 1, other)
    report = json.loads((tmp_path / REPORT).read_bytes())
    assert list(report["patients"]) == cohort.ids[:2]
    assert len((tmp_path / "participants.tsv").read_text().splitlines()) == 3


def test_cropped_files_of_rounded_values_are_reported(cohort, tmp_path):
    choice, one = Choice(arrays=("sCT",), grids=("mri",)), cohort[:1]
    stored = export(one, tmp_path / "stored", choice=choice)
    cropped = export(one, tmp_path / "cropped", choice=choice, frame=Frame(None, "Rectum"))
    (before,), (now,) = stored.written.values(), cropped.written.values()
    assert len(before.rounded) == 1
    assert now.rounded == before.rounded


def test_a_patient_without_the_structure_fails_alone(cohort, tmp_path):
    lacking = cohort.where("missing_Genitalia").ids
    done = export(cohort, tmp_path, choice=FEW, frame=Frame(None, "Genitalia", 5))
    assert list(done.failed) == lacking
    assert "nothing to crop to" in done.failed[lacking[0]]
    assert set(done.written) == set(cohort.ids) - set(lacking)


def test_a_grid_that_nifti_cannot_say_is_refused(cohort, tmp_path):
    done = export(cohort[:1], tmp_path, choice=FEW, frame=Frame((0.001, 9, 9)))
    assert "32767" in done.failed[cohort.ids[0]]


def test_wrong_choices_are_refused():
    with pytest.raises(UnknownLabelError, match="nearest: Rectum"):
        Choice(structures=("Rectumm",))
    with pytest.raises(UnknownLabelError, match="sources"):
        Choice(sources=("nobody",))
    with pytest.raises(UsageError, match="duplicates"):
        Choice(arrays=())
    with pytest.raises(UsageError, match="without a structure"):
        Frame(margin_mm=3)
    with pytest.raises(UsageError, match="source or bids"):
        Shape(layout="dicom")


def test_options_of_the_command_line():
    assert _cropped("PTVT_427:20mm") == ("PTVT_427", 20.0)
    assert _cropped("PTVT_427:7.5") == ("PTVT_427", 7.5)
    assert _cropped("PTVT_427") == ("PTVT_427", 0.0)
    assert _spacing("1.5") == 1.5
    assert _spacing("3,1,1") == (3.0, 1.0, 1.0)
    for wrong in ("PTVT_427:20cm", "PTVT_427:-3mm", ":"):
        with pytest.raises(UsageError, match="--crop"):
            _cropped(wrong)
    for wrong in ("a", "1,2", ""):
        with pytest.raises(UsageError, match="--resample"):
            _spacing(wrong)


def test_a_place_that_cannot_be_written_is_named(cohort):
    with pytest.raises(lp.LundProbeError) as caught:
        lp.export_nifti(cohort, "/proc/nothing")
    assert caught.value.where == "/proc/nothing"
    assert caught.value.remedy
