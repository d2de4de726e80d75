"""DICOM files as files: valid, of no person, the same each time, whole or not there."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_moved import moved_dataset
from dicom_reading import all_files, read, stored
from dicom_written import patients
from pydicom.dataset import Dataset

from lundprobe_zarr.cli import main
from lundprobe_zarr.errors import (
    MissingPackageError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.exchange.dicom.export import export_dicom, volumes_read
from lundprobe_zarr.exchange.dicom.options import DicomOptions
from lundprobe_zarr.exchange.dicom.segmentations import groups
from lundprobe_zarr.storage.location import Location

DCIODVFY, PLASTIMATCH = shutil.which("dciodvfy"), shutil.which("plastimatch")
#: Data elements that may say when or who.
_WHEN = ("DA", "TM", "DT")


def names(exported):
    return [o["name"] for o in exported.objects]


def elements(data: Dataset):
    for element in data:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_finds_no_error(written, tmp_path):
    files = [
        f for f in all_files(written.home) if f.stem in ("0001", "0007") or f.parent == written.home
    ]
    assert len(files) >= 12
    for file in files:
        checked = _as_16_bits(file, tmp_path) if file.stem == "RTDOSE" else file
        ran = subprocess.run([DCIODVFY, checked], capture_output=True, text=True, check=False)
        assert "Error" not in ran.stderr, (file.name, ran.stderr)
        assert ran.returncode == 0, (file.name, ran.stderr)


def _as_16_bits(file: Path, folder: Path) -> Path:
    """Return the dose with 16 bits, all else the same: dciodvfy aborts at pixels of 32."""
    data = read(file)
    data.PixelData = (data.pixel_array >> 16).astype("<u2").tobytes()
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.save_as(folder / file.name)
    return folder / file.name


@pytest.mark.skipif(PLASTIMATCH is None, reason="plastimatch is not installed")
@pytest.mark.parametrize("name", ["MR_T2w", "CT_sCT"])
def test_plastimatch_finds_the_voxels_of_masks(extended, tmp_path, name):
    group = "mri/clinical" if name == "MR_T2w" else "sct/clinical"
    _plastimatch(
        *("--input", extended.home / f"RTSTRUCT_{name}.dcm"),
        *("--referenced-ct", extended.home / name),
        *("--output-prefix", tmp_path / "masks", "--prefix-format", "nii"),
    )
    for structure in extended.reader.metadata.labels(group)["structure"]:
        found = np.asarray(nib.load(tmp_path / "masks" / f"{structure}.nii").dataobj).T != 0
        mask = stored(extended.reader, f"{group}/mask", structure=structure)
        assert np.array_equal(found, mask), structure


@pytest.mark.skipif(PLASTIMATCH is None, reason="plastimatch is not installed")
def test_plastimatch_finds_the_dose(extended, tmp_path):
    image = tmp_path / "dose.nii"
    _plastimatch("--input", extended.home / "RTDOSE.dcm", "--output-dose-img", image)
    dose = stored(extended.reader, "dose/dose")
    found = nib.load(image)
    # plastimatch multiplies 32-bit floats
    np.testing.assert_allclose(np.asarray(found.dataobj).T, dose, rtol=3e-7, atol=1e-7)
    np.testing.assert_allclose(
        found.affine, extended.reader.metadata.grid("dose").affine, atol=1e-4
    )


def _plastimatch(*arguments: object) -> None:
    command = [str(PLASTIMATCH), "convert", *map(str, arguments)]
    subprocess.run(command, capture_output=True, check=True)


def test_nothing_says_who_or_when(written):
    for file in all_files(written.home):
        data = read(file)
        assert data.PatientID == written.patient_id
        assert str(data.PatientName) in (f"{written.patient_id}^", written.patient_id)
        assert (data.PatientIdentityRemoved, bool(data.DeidentificationMethod)) == ("YES", True)
        for element in elements(data):
            if element.VR in _WHEN:
                assert element.value in (None, "", "19000101", "000000"), (file.name, element)
            if element.VR == "PN" and element.keyword != "PatientName":
                assert not element.value, (file.name, element)
        if data.Modality in ("MR", "CT", "RTDOSE"):
            assert list(data.ImageType[:2]) == ["DERIVED", "SECONDARY"]
            assert "LUND-PROBE" in data.DerivationDescription


def test_texts_are_as_long_as_dicom_allows(written):
    most = {"DS": 16, "SH": 16, "LO": 64, "UI": 64, "CS": 16}
    for file in all_files(written.home):
        for element in elements(read(file)):
            if element.VR in most and element.value is not None:
                values = element.value if element.VM > 1 else [element.value]
                for value in values:
                    text = getattr(value, "original_string", str(value))
                    assert len(text) <= most[element.VR], (file.name, element)


def test_the_same_patient_gives_the_same_bytes(extended, dataset, tmp_path):
    again = export_dicom(Location(dataset), extended.patient_id, tmp_path)
    files = all_files(extended.home)
    assert len(files) > 40
    for file in files:
        other = again.folder / file.relative_to(extended.home)
        assert file.read_bytes() == other.read_bytes(), file.name


def test_structures_and_sources_are_chosen(extended, dataset, tmp_path):
    options = DicomOptions(("Rectum",), ("clinical", "observer"))
    paths: list[str] = []
    exported = export_dicom(
        Location(dataset), extended.patient_id, tmp_path, options, on_volume=paths.append
    )
    assert len(paths) == volumes_read(Location(dataset), extended.patient_id, options) == 14
    assert [n for n in names(exported) if n.startswith(("SEG", "UNC"))] == [
        "SEG_MR_T2w_clinical_1",
        "SEG_MR_T2w_observer_1",
        "SEG_CT_sCT_clinical_1",
    ]
    data = read(exported.folder / "RTSTRUCT_MR_T2w.dcm")
    assert data.StructureSetROISequence[0].ROIName == "Rectum"
    assert len(data.StructureSetROISequence) == 4  # and three fiducials
    whole = read(extended.home / "RTSTRUCT_MR_T2w.dcm")
    assert data.SOPInstanceUID != whole.SOPInstanceUID
    assert data.FrameOfReferenceUID == whole.FrameOfReferenceUID


def test_names_of_tg263_and_a_patient_position(extended, dataset, tmp_path):
    options = DicomOptions(sources=("clinical",), tg263=True, patient_position="HFS")
    exported = export_dicom(Location(dataset), extended.patient_id, tmp_path, options)
    data = read(exported.folder / "RTSTRUCT_CT_sCT.dcm")
    rois = [r.ROIName for r in data.StructureSetROISequence]
    assert {"CTV_4270", "Femur_Head_L", "External"} < set(rois)
    types = [r.RTROIInterpretedType for r in data.RTROIObservationsSequence]
    assert dict(zip(rois, types, strict=True))["External"] == "EXTERNAL"
    segments = read(exported.folder / "SEG_CT_sCT_clinical_1.dcm").SegmentSequence
    assert segments[0].SegmentLabel == "CTV_4270"
    now, before = (read(h / "MR_T2w" / "0001.dcm") for h in (exported.folder, extended.home))
    assert (now.PatientPosition, before.PatientPosition) == ("HFS", "")
    assert now.SOPInstanceUID != before.SOPInstanceUID, "one UID is one content"


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"structures": ("Prostate",)}, UnknownLabelError, "unknown structure 'Prostate'"),
        ({"sources": ("nnUNet",)}, UnknownLabelError, "nearest: nnunet"),
        ({"patient_position": "up"}, UsageError, "expected one of HFS"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, kind, said):
    with pytest.raises(kind, match=said):
        DicomOptions(**options)


def test_what_a_patient_lacks_is_refused(dataset, extended, tmp_path):
    base = next(p for p in patients(dataset) if p != extended.patient_id)
    with pytest.raises(UsageError, match="no segmentations of source observer"):
        export_dicom(Location(dataset), base, tmp_path, DicomOptions(sources=("observer",)))
    with pytest.raises(MissingStructureError, match="lacks the structure Bladder"):
        export_dicom(
            Location(dataset),
            extended.patient_id,
            tmp_path,
            DicomOptions(("Rectum", "Bladder"), ("nnunet",)),
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_a_rerun_all(
    extended, dataset, tmp_path, monkeypatch, killed_writer
):
    saved = Dataset.save_as
    written: list[Path] = []

    def fills_up(data, path, *arguments, **options):
        if len(written) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return saved(data, path, *arguments, **options)

    left = tmp_path / f".{extended.patient_id}.partial-{killed_writer}"
    left.mkdir()
    (left / "from a killed export").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_as", fills_up)
        with pytest.raises(OSError, match=f"{extended.patient_id}.*dcm") as error:
            export_dicom(Location(dataset), extended.patient_id, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert ".partial" not in str(error.value)
    assert not list(tmp_path.iterdir())
    exported = export_dicom(Location(dataset), extended.patient_id, tmp_path)
    assert len(all_files(exported.folder)) == len(all_files(extended.home))
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(UsageError, match="exists already"):
        export_dicom(Location(dataset), extended.patient_id, tmp_path)


def test_another_export_of_the_same_patient_takes_nothing_away(extended, dataset, tmp_path):
    read: list[str] = []

    def meanwhile(path):
        read.append(path)
        if len(read) == 3:  # after files of the first series
            with pytest.raises(KeyboardInterrupt):
                export_dicom(Location(dataset), extended.patient_id, tmp_path, None, interrupted)

    def interrupted(path):
        raise KeyboardInterrupt

    exported = export_dicom(Location(dataset), extended.patient_id, tmp_path, None, meanwhile)
    assert len(all_files(exported.folder)) == len(all_files(extended.home))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_within_a_dataset_is_refused(dataset, extended):
    with pytest.raises(UsageError, match="within the dataset"):
        export_dicom(Location(dataset), extended.patient_id, dataset / "out")


def test_a_sheared_patient_is_refused(phantom_source, tmp_path):
    shear = np.eye(3)
    shear[0, 2] = 0.2
    dataset = moved_dataset(phantom_source, tmp_path / "sheared", {"sct": shear})
    with pytest.raises(UsageError, match="grid sct are not at right angles"):
        export_dicom(Location(dataset), patients(dataset)[0], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_an_empty_mask_is_a_structure_without_contours(phantom_source, tmp_path):
    dataset = moved_dataset(phantom_source, tmp_path / "empty", {}, empty="Bladder")
    patient = patients(dataset)[0]
    options = DicomOptions(structures=("Bladder",))
    exported = export_dicom(Location(dataset), patient, tmp_path / "out", options)
    data = read(exported.folder / "RTSTRUCT_MR_T2w.dcm")
    assert data.StructureSetROISequence[0].ROIName == "Bladder"
    assert "ContourSequence" not in data.ROIContourSequence[0]
    segments = read(exported.folder / "SEG_MR_T2w_clinical_1.dcm")
    assert [s.SegmentLabel for s in segments.SegmentSequence] == ["Bladder"]
    assert not segments.pixel_array.any()
    if DCIODVFY is not None:
        for file in (f for f in exported.folder.glob("*.dcm") if f.stem != "RTDOSE"):
            ran = subprocess.run([DCIODVFY, file], capture_output=True, text=True, check=False)
            assert "Error" not in ran.stderr, ran.stderr


def test_large_sources_are_shared_out_over_objects(monkeypatch):
    from lundprobe_zarr.exchange.dicom.masks import Cut
    from lundprobe_zarr.exchange.dicom.segmentations import Segment

    monkeypatch.setattr("lundprobe_zarr.exchange.dicom.segmentations.MOST_BYTES", 1000)
    spans = [(0, 4), (2, 6), (0, 50), (5, 6), (0, 0)]
    segments = [
        Segment({"structure": str(n)}, Cut((a, 0, 0), np.ones((b - a, 1, 1), bool)))
        for n, (a, b) in enumerate(spans)
    ]
    found = [[s.structure for s in group] for group in groups(segments, plane_bytes=10)]
    assert found == [["0", "1"], ["2"], ["3", "4"]]


@pytest.mark.parametrize("package", ["highdicom", "pydicom"])
def test_missing_packages_are_named_with_the_command(
    dataset, extended, tmp_path, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[dicom\]'") as error:
        export_dicom(Location(dataset), extended.patient_id, tmp_path)
    assert package in error.value.finding


def run(capfd, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    shown = capfd.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_the_command_writes_and_says_what_was_rounded(dataset, extended, tmp_path, capfd):
    patient = ("export", dataset, extended.patient_id, tmp_path)
    options = ("--format", "dicom", "--structures", "CTVT_427, Rectum", "--sources", "clinical")
    status, out, _ = run(capfd, *patient, *options)
    assert status == 0
    assert "Wrote 46 files" in out
    rounded = extended.exported.objects[2]["max_abs_error"]
    assert f"rounded to whole HU, by at most {rounded:.3g} HU" in out
    assert "SEG_CT_sCT_clinical_1" in out
    assert names(extended.exported) != []
    for wrong, said in (
        (("--format", "dicom"), "exists already"),
        (("--tg263",), "--tg263 without --format dicom"),
        (("--format", "dicom", "--crop", "Rectum"), "--crop with --format dicom"),
        (("--patient-position", "HFS"), "--patient-position without --format dicom"),
        (("--format", "dicom", "--sources", "nnUNet"), "nearest: nnunet"),
        (("--format", "dcm"), "Invalid value"),
    ):
        status, _, err = run(capfd, *patient, *wrong)
        assert status == 2, wrong
        assert said in " ".join(err.split()), err


def test_the_command_writes_several_and_goes_on_where_it_was(dataset, extended, tmp_path, capfd):
    some = ("--format", "dicom", "--structures", "CTVT_427", "--sources", "clinical")
    every = ("export", dataset, tmp_path, *some)
    first = patients(dataset)[0]
    assert run(capfd, "export", dataset, first, tmp_path, *some)[0] == 0
    status, out, _ = run(capfd, *every, "--where", "part = 'base' OR n_fiducials > 0")
    assert status == 0
    assert f"{first}: there from an earlier run" in out
    assert out.count("Wrote") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == patients(dataset)
    report = tmp_path / first / "report.json"
    for of_another_store in (
        report.read_text().replace('"store_sha256": "', '"store_sha256": "0'),
        "",
    ):
        report.write_text(of_another_store)
        status, out, _ = run(capfd, *every)
        assert status == 1
        assert "Failed: 1 patient" in out
        assert f"{first} exists already" in out
    other = ("export", dataset, tmp_path, "--format", "dicom", "--sources", "nnunet")
    status, out, _ = run(capfd, *other)
    assert status == 1
    assert "Failed: 4 patients" in out
    assert out.count("exists already") == 4
