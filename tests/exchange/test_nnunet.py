"""Exports to nnU-Net: exact voxels and geometry, right documents, and exports that go on."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.exchange import nnunet_case
from lundprobe_zarr.exchange.nnunet import NnUNetReport, Progress, export_nnunet
from lundprobe_zarr.exchange.nnunet_case import image_type, nifti_header
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.local import WRITING
from tests.anywhere.servers import file_server

LABELS = ["CTVT_427", "PTVT_427", "Rectum", "Bladder"]
FILES = {"T2w": "MR_StorT2/image.nii.gz", "sCT": "sCT/image_reg2MRI.nii.gz"}


def export(cohort: lp.Cohort, out: Path, **options: Any) -> NnUNetReport:
    how: dict[str, Any] = {"dataset_id": 801, "name": "Prostate", "labels": LABELS, "folds": 2}
    return export_nnunet(cohort, out, **(how | options))


def document(report: NnUNetReport, name: str = "dataset.json") -> Any:
    return json.loads((report.folder / name).read_text())


def voxels(file: Path) -> np.ndarray:
    return np.asanyarray(nib.load(file).dataobj)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Each file's time of change, which tells whether it was written again, and bytes."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_bytes()) for f in files}


@pytest.fixture(scope="session")
def exported(cohort: lp.Cohort, tmp_path_factory: pytest.TempPathFactory) -> NnUNetReport:
    """T2w and sCT of all, the extended patient for testing. Read-only."""
    out = tmp_path_factory.mktemp("raw")
    test = cohort.where("part = 'extended'")
    return export(cohort, out, channels=["T2w", "sCT"], test=test, workers=2)


def test_images_are_those_of_the_source(exported, source_files):
    assert len(exported.notes) == 4
    for note in exported.notes:
        folder = exported.folder / f"images{note.subset}"
        for number, file in enumerate(FILES.values()):
            made = folder / f"{note.patient_id}_{number:04d}.nii.gz"
            original = source_files[note.patient_id] / file
            a, b = nib.load(made), nib.load(original)
            if number:  # float64, which the conversion rounded
                assert a.get_data_dtype() == np.float32
                np.testing.assert_array_equal(voxels(made), voxels(original).astype(np.float32))
            else:
                assert a.get_data_dtype() == b.get_data_dtype() == np.int16
                np.testing.assert_array_equal(voxels(made), voxels(original))


def test_geometry_is_that_of_the_source_for_both_readers(exported, source_files):
    for note in exported.notes:
        original = source_files[note.patient_id] / FILES["T2w"]
        there, read = nib.load(original), sitk.ReadImage(str(original))
        for name in note.files:
            image = nib.load(exported.folder / name)
            np.testing.assert_array_equal(image.affine, there.affine)
            for of in ("get_sform", "get_qform"):
                (a, code), (b, known) = getattr(image, of)(True), getattr(there, of)(True)
                assert code == known
                np.testing.assert_array_equal(a, b)
            other = sitk.ReadImage(str(exported.folder / name))
            for of in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
                assert getattr(other, of)() == getattr(read, of)()


def test_an_oblique_grid_keeps_its_direction(oblique, tmp_path):
    report = export(oblique, tmp_path)
    (note,) = report.notes
    made = [sitk.ReadImage(str(report.folder / f)) for f in note.files]
    turned = np.reshape(made[0].GetDirection(), (3, 3))
    assert np.abs(turned - np.diag(np.diag(turned))).max() > 0.01
    assert {i.GetDirection() for i in made} == {made[0].GetDirection()}
    for file in note.files:
        affine = nib.load(report.folder / file).affine
        np.testing.assert_array_equal(affine, np.reshape(oblique[0].mri.affine, (4, 4)))


def test_labels_are_those_of_label_map(exported, cohort):
    for note in exported.notes:
        found = voxels(exported.folder / f"labels{note.subset}/{note.patient_id}.nii.gz")
        wanted = lp.label_map(cohort[note.patient_id], LABELS)
        np.testing.assert_array_equal(found.T, wanted.array)
        assert found.dtype == np.uint8
        assert note.voxels == wanted.voxels
        assert [o["voxels"] for o in note.overlaps] == [o.voxels for o in wanted.overlaps]


def test_documents_say_what_is_there(exported, cohort):
    found = document(exported)
    assert found["channel_names"] == {"0": "T2w", "1": "CT"}
    assert list(found["labels"].items()) == [(n, i) for i, n in enumerate(["background", *LABELS])]
    assert (found["numTraining"], found["file_ending"]) == (3, ".nii.gz")
    assert "regions_class_order" not in found
    assert exported.folder.name == "Dataset801_Prostate"
    images = sorted(f.name for f in (exported.folder / "imagesTr").iterdir())
    base = cohort.where("part = 'base'")
    assert images == sorted(f"{i}_{n:04d}.nii.gz" for i in base.ids for n in (0, 1))
    folds = document(exported, "splits_final.json")
    assert len(folds) == 2
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(base.ids)
    report = document(exported, "lundprobe-export.json")
    assert report["training"] == base.ids
    assert report["test"] == cohort.where("part = 'extended'").ids
    pair = exported.overlaps().iloc[0]
    assert (pair["first"], pair["second"], pair.winner, pair.patients) == (
        "CTVT_427", "PTVT_427", "CTVT_427", 4,
    )  # fmt: skip
    assert report["overlaps"][0]["voxels"] == pair.voxels


def test_regions_keep_every_mask(cohort, tmp_path):
    names = [*LABELS, "BODY"]
    report = export(cohort, tmp_path, labels=names, regions=True)
    found = document(report)
    labels = found["labels"]
    assert list(labels) == ["background", "BODY", "Bladder", "Rectum", "PTVT_427", "CTVT_427"]
    order = found["regions_class_order"]
    assert all(n in np.atleast_1d(v) for n, v in zip(order, list(labels.values())[1:], strict=True))
    for patient in cohort:
        made = voxels(report.folder / f"labelsTr/{patient.patient_id}.nii.gz").T
        for name in names:
            mask = np.isin(made, labels[name])
            np.testing.assert_array_equal(mask, patient.mask(name))
    assert report.overlaps().winner.isna().all()


def test_who_lacks_a_structure_is_left_out(cohort, tmp_path):
    report = export(cohort, tmp_path, labels=["Rectum", "PenileBulb"])
    lacking = cohort.where("missing_PenileBulb").ids
    assert report.left_out == dict.fromkeys(lacking, "lacks PenileBulb")
    assert document(report)["numTraining"] == 4 - len(lacking)
    assert "ignore" not in document(report)["labels"]
    for fold in document(report, "splits_final.json"):
        assert not set(lacking) & {*fold["train"], *fold["val"]}


def test_or_has_the_ignore_label_where_it_could_be(cohort, tmp_path):
    report = export(cohort, tmp_path, labels=["Rectum", "PenileBulb", "BODY"], missing="ignore")
    assert document(report)["labels"]["ignore"] == 4
    (lacking,) = cohort.where("missing_PenileBulb")
    made = voxels(report.folder / f"labelsTr/{lacking.patient_id}.nii.gz").T
    np.testing.assert_array_equal(made, np.where(lacking.mask("Rectum"), 1, 4))
    (note,) = [n for n in report.notes if n.absent]
    assert (note.patient_id, note.ignored) == (lacking.patient_id, int((made == 4).sum()))
    assert not report.left_out


def test_empty_masks_are_none_and_a_region_that_could_be_anywhere_leaves_out(
    source_files, cohort, tmp_path
):
    for patient_id in cohort.ids[:2]:
        shutil.copytree(source_files[patient_id], tmp_path / "source/basePart" / patient_id)
    (tmp_path / f"source/basePart/{cohort.ids[0]}/MR_StorT2/mask_BODY.nii.gz").unlink()
    bladder = tmp_path / f"source/basePart/{cohort.ids[1]}/MR_StorT2/mask_Bladder.nii.gz"
    empty = nib.load(bladder)
    nib.save(nib.Nifti1Image(np.zeros(empty.shape, np.uint8), None, empty.header), bladder)
    for patient in take_inventory(tmp_path / "source").patients:
        assert convert_patient(patient, tmp_path / "dataset", "standard").error is None
    finalise(tmp_path / "dataset")
    lacking = lp.open_cohort(tmp_path / "dataset")
    how = {"labels": ["Rectum", "BODY"], "missing": "ignore"}
    report = export(lacking, tmp_path, regions=True, **how)
    assert report.left_out == {cohort.ids[0]: "lacks BODY, which could be anywhere"}
    empty_left_out = export(lacking, tmp_path, dataset_id=803, labels=["Rectum", "Bladder"])
    assert empty_left_out.left_out == {cohort.ids[1]: "lacks Bladder"}
    single = export(lacking, tmp_path, dataset_id=802, **how)
    made = voxels(single.folder / f"labelsTr/{cohort.ids[0]}.nii.gz").T
    np.testing.assert_array_equal(made, np.where(cohort[0].mask("Rectum"), 1, 3))


def test_hidden_structures_are_named(cohort, tmp_path):
    report = export(cohort, tmp_path, labels=["CTVT_427", "PTVT_427"], priority=["PTVT_427"])
    assert [n.hidden for n in report.notes] == [("CTVT_427",)] * 4


def test_a_second_run_writes_nothing(cohort, tmp_path):
    first = export(cohort, tmp_path)
    before = contents(first.folder)
    again = export(cohort, tmp_path)
    assert (again.kept, len(again.notes)) == (4, 4)
    after = contents(first.folder)
    assert {f: b for f, (_, b) in before.items()} == {f: b for f, (_, b) in after.items()}
    images = [f for f in before if "Tr/" in f]
    assert len(images) == 8
    assert all(before[f][0] == after[f][0] for f in images)


def test_what_is_missing_or_cut_is_written_again(cohort, tmp_path):
    report = export(cohort, tmp_path)
    before = contents(report.folder)
    files = sorted((report.folder / "imagesTr").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-9])
    (report.folder / ".lundprobe" / "patients" / f"{files[2].name[:23]}.json").write_text("{}")
    again = export(cohort, tmp_path)
    assert again.kept == 1
    after = contents(report.folder)
    assert {f: b for f, (_, b) in before.items()} == {f: b for f, (_, b) in after.items()}


def test_new_patients_are_added(cohort, tmp_path):
    export(cohort[:2], tmp_path)
    report = export(cohort, tmp_path)
    assert report.kept == 2
    assert document(report)["numTraining"] == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": LABELS[:2]}, "labels"),
        ({"channels": "sCT"}, "channels"),
        ({"regions": True}, "regions None"),
        ({"level": 1}, "level 3, not 1"),
        ({"missing": "ignore"}, "missing skip"),
    ],
)
def test_other_settings_are_refused(exported, cohort, change, says):
    how = {"channels": ["T2w", "sCT"], "test": cohort.where("part = 'extended'")} | change
    before = contents(exported.folder)
    with pytest.raises(UsageError, match=says) as raised:
        export(cohort, exported.folder.parent, **how)
    assert "--overwrite" in raised.value.remedy
    assert contents(exported.folder) == before


def test_patients_who_are_elsewhere_now_are_refused_and_overwritten(cohort, tmp_path):
    export(cohort, tmp_path)
    test = cohort.where("part = 'extended'")
    with pytest.raises(UsageError, match="in imagesTr, not in imagesTs"):
        export(cohort, tmp_path, test=test)
    with pytest.raises(UsageError, match="in imagesTr, not left out"):
        export(cohort[:3], tmp_path)
    report = export(cohort, tmp_path, test=test, overwrite=True, level=1)
    assert report.kept == 0
    assert [f.name for f in (report.folder / "labelsTs").iterdir()] == [f"{test.ids[0]}.nii.gz"]
    assert len(list((report.folder / "imagesTr").iterdir())) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_taken_dataset_id_is_refused(cohort, tmp_path, overwrite):
    (tmp_path / "Dataset801_Other").mkdir()
    with pytest.raises(UsageError, match="801 is that of Dataset801_Other already"):
        export(cohort, tmp_path, overwrite=overwrite)
    (tmp_path / "Dataset801_Other").rename(tmp_path / "Dataset801_Prostate")
    (tmp_path / "Dataset801_Prostate" / "dataset.json").write_text("mine")
    with pytest.raises(UsageError, match="no export of this command"):
        export(cohort, tmp_path, overwrite=overwrite)
    assert (tmp_path / "Dataset801_Prostate" / "dataset.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"labels": ["Recum"]}, UnknownLabelError, "nearest: Rectum"),
        ({"labels": ["fiducials"]}, UsageError, "fiducials are points"),
        ({"dataset_id": 0}, UsageError, "dataset id 0; expected 1 to 999"),
        ({"dataset_id": 1000}, UsageError, "1 to 999"),
        ({"name": "a/b"}, UsageError, "letters, digits"),
        ({"channels": "T2"}, UnknownLabelError, "nearest: T2w"),
        ({"channels": ["T2w", "T2w"]}, UsageError, "each once"),
        ({"channels": "sCT="}, UsageError, "a name after ="),
        ({"channels": ["T2w", "sCT"], "grid": "sct"}, UsageError, "choose the mri grid"),
        ({"grid": "dose"}, UsageError, "has no masks"),
        ({"level": 10}, UsageError, "level 10"),
        ({"missing": "zero"}, UsageError, "missing='zero'"),
        ({"workers": 0}, UsageError, "workers=0"),
        ({"folds": 1}, UsageError, "folds=1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    cohort, tmp_path, options, error, says
):
    with pytest.raises(error, match=says):
        export(cohort, tmp_path / "raw", **options)
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_no_patients_are_refused(cohort, dataset, tmp_path):
    with pytest.raises(UsageError, match="no patients to train with"):
        export(cohort.where("FALSE"), tmp_path)
    with pytest.raises(UsageError, match="no patients to test with"):
        export(cohort, tmp_path, test=cohort.where("FALSE"))
    lacking = cohort.where("missing_PenileBulb")
    with pytest.raises(UsageError, match="1: lacks PenileBulb"):
        export(lacking, tmp_path, labels=["PenileBulb"], missing="ignore")
    with pytest.raises(UsageError, match="within the dataset"):
        export(cohort, dataset / "raw")
    assert not list(tmp_path.iterdir())


def test_splits_are_kept(cohort, tmp_path):
    splits = cohort.split(test=0.25, folds=3, seed=4)
    report = export(cohort, tmp_path, splits=splits)
    found = document(report, "splits_final.json")
    assert found == [{"train": f.train.ids, "val": f.val.ids} for f in splits.folds]
    assert [n.patient_id for n in report.notes if n.subset == "Ts"] == splits.test.ids
    with pytest.raises(UsageError, match="in the test set and in the folds"):
        export(cohort, tmp_path, splits=splits, test=splits.folds[0].val)
    with pytest.raises(UsageError, match="is not in the cohort"):
        export(splits.folds[0].val, tmp_path, splits=splits)


def test_too_few_patients_make_no_folds(cohort, tmp_path):
    report = export(cohort, tmp_path, folds=5)
    assert report.folds is None
    assert not (report.folder / "splits_final.json").exists()


def test_it_reads_from_the_web(dataset, exported, tmp_path):
    pytest.importorskip("aiohttp")
    with file_server(dataset.parent) as (url, _):
        cohort = lp.open_cohort(f"{url}/{dataset.name}")
        report = export(cohort, tmp_path, channels=["T2w", "sCT"],
                        test=cohort.where("part = 'extended'"))  # fmt: skip
    for note in exported.notes:
        for file in note.files:
            assert (report.folder / file).read_bytes() == (exported.folder / file).read_bytes()


def test_a_damaged_patient_fails_alone(dataset, copied, cohort, tmp_path):
    victim = cohort.ids[1]
    shard = copied / "patients" / f"{victim}.zarr" / "mri/clinical/mask/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-8])
    report = export(lp.open_cohort(copied), tmp_path / "raw")
    assert list(report.failed) == [victim]
    assert document(report)["numTraining"] == 3
    assert not list(report.folder.glob(f"*/{victim}*"))
    assert all(victim not in f["train"] + f["val"] for f in report.folds)
    shutil.copy(dataset / shard.relative_to(copied), shard)
    mended = export(lp.open_cohort(copied), tmp_path / "raw")
    assert (mended.kept, len(mended.notes), mended.failed) == (3, 4, {})


def test_a_patient_who_cannot_be_looked_at_keeps_its_files(copied, cohort, tmp_path):
    export(lp.open_cohort(copied), tmp_path / "raw")
    (copied / "patients" / f"{cohort.ids[0]}.zarr" / "zarr.json").unlink()
    report = export(lp.open_cohort(copied), tmp_path / "raw")
    assert list(report.failed) == [cohort.ids[0]]
    assert document(report)["numTraining"] == report.kept == 4


def test_a_full_disk_leaves_nothing_half_and_is_no_end(cohort, tmp_path, monkeypatch):
    real = nnunet_case.gzip_ng.GzipNGFile
    sizes = {"left": 120_000}

    class Filling(real):
        def write(self, data: Any) -> int:
            sizes["left"] -= memoryview(data).nbytes
            if sizes["left"] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as patched:
        patched.setattr(nnunet_case.gzip_ng, "GzipNGFile", Filling)
        with pytest.raises(OSError, match="No space left") as raised:
            export(cohort, tmp_path, workers=1)
    assert raised.value.filename.endswith(".nii.gz")
    folder = tmp_path / "Dataset801_Prostate"
    assert not (folder / "dataset.json").exists()
    images = {f.name[:23] for f in folder.glob("imagesTr/*")}
    assert images == {f.name[:23] for f in folder.glob("labelsTr/*")}
    assert 0 < len(images) < 4
    assert not list(folder.rglob(f"*{WRITING}*"))
    report = export(cohort, tmp_path)
    assert (report.kept, len(report.notes)) == (len(images), 4)


def test_what_a_killed_export_left_is_continued(dataset, cohort, tmp_path):
    code = (
        "import sys, time, lundprobe_zarr as lp\n"
        "from lundprobe_zarr.exchange import nnunet, nnunet_case\n"
        "real = nnunet_case.read_patterns\n"
        "def slow(*a):\n"
        "    print('reading', flush=True); time.sleep(30); return real(*a)\n"
        f"cohort = lp.open_cohort({str(dataset)!r})\n"
        f"how = {{'dataset_id': 801, 'name': 'Prostate', 'labels': {LABELS!r}, 'folds': 2}}\n"
        f"nnunet.export_nnunet(cohort[:1], {str(tmp_path)!r}, **how)\n"
        "nnunet_case.read_patterns = slow\n"
        f"nnunet.export_nnunet(cohort, {str(tmp_path)!r}, **how, workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"reading"
    process.kill()
    process.communicate()
    folder = tmp_path / "Dataset801_Prostate"
    assert list(folder.glob(f"labelsTr/.*{WRITING}*"))
    assert not (folder / "dataset.json").exists()
    report = export(cohort, tmp_path)
    assert (report.kept, len(report.notes)) == (1, 4)
    assert not list(folder.rglob(f"*{WRITING}*"))


def test_an_interrupt_stops_soon(cohort, tmp_path):
    def finished(patient_id: str, error: str | None) -> None:
        if started[-1] == "Writing":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    started: list[str] = []
    progress = Progress(lambda what, patients: started.append(what), finished)
    with pytest.raises(KeyboardInterrupt):
        export(cohort, tmp_path, workers=1, progress=progress)
    assert not (tmp_path / "Dataset801_Prostate" / "dataset.json").exists()
    assert 0 < export(cohort, tmp_path).kept < 4


def test_voxels_that_are_no_numbers_are_counted(cohort, tmp_path, monkeypatch):
    real = nnunet_case.StoreReader.read

    def spoilt(self: Any, volumes: Any, box: Any) -> Any:
        (values,) = real(self, volumes, box)
        if volumes[0][1] == {"modality": "sCT"} and box[0].start == 0:
            values[0, 0, :3] = np.nan, np.inf, -np.inf
        return [values]

    monkeypatch.setattr(nnunet_case.StoreReader, "read", spoilt)
    report = export(cohort[:1], tmp_path, channels=["T2w", "sCT"])
    assert report.notes[0].not_finite == {"sCT": 3}


@pytest.mark.parametrize(
    ("dtype", "exact", "slope", "stored", "written"),
    [
        ("<i2", True, None, "float32", "int16"),
        (">i2", True, 1.0, "float32", "int16"),
        (">u1", True, None, "int16", "uint8"),
        ("<i2", True, 0.5, "float32", "float32"),
        ("<f8", True, None, "float32", "float32"),
        ("<f8", False, None, "int16", "int16"),
        ("<f8", True, None, "float64", "float64"),
    ],
)
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_types_and_headers(kind, dtype, exact, slope, stored, written):
    header = kind(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape((5, 4, 3, 1))
    header["scl_slope"] = np.nan if slope is None else slope
    header["scl_inter"] = np.nan if slope is None else 0
    turn = np.array([[0.46, 0.1, 0, -12.3], [-0.1, 0.46, 0.2, 4.5], [0, 0.3, 2.5, 6], [0, 0, 0, 1]])
    header.set_sform(turn, 1)
    header.set_qform(turn, 2)
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"a name"
    header["cal_max"] = 7
    raw = header.binaryblock
    record = SourceRecord(
        labels={}, path="x", bytes=1, sha256="", dtype=dtype, exact=exact,
        header=base64.b64encode(raw).decode(),
    )  # fmt: skip
    chosen = image_type(record, np.dtype(stored))
    assert chosen == np.dtype(written)
    made = kind(nifti_header(raw, chosen)[: len(raw)])
    assert made.endianness == "<"
    assert made.get_data_shape() == (5, 4, 3)
    assert made.get_data_dtype() == chosen
    assert made.get_slope_inter() == (1.0, 0.0)
    assert int(made["vox_offset"]) == len(nifti_header(raw, chosen))
    np.testing.assert_array_equal(made.get_sform(), header.get_sform())
    np.testing.assert_array_equal(made.get_qform(), header.get_qform())
    assert (int(made["sform_code"]), int(made["qform_code"])) == (1, 2)
    assert (made["descrip"], made["cal_max"]) == (b"", 0)
