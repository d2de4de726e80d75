"""Values, places and names in DICOM, as independent readers find them."""

from __future__ import annotations

import json

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_reading import all_files, contours, lps_affine, masks, read, series, stored

from lundprobe_zarr.exchange.dicom.lattice import planes_of
from lundprobe_zarr.geometry.affine import ras_to_lps
from lundprobe_zarr.geometry.lattice import Grid

SERIES = {
    "MR_T2w": ("mri", "T2w"),
    "CT_sCT": ("sct", "sCT"),
    "CT_sCT_on_MRI": ("mri", "sCT"),
}


def flipped(written, grid):
    """Whether ITK, whose images are right-handed, has the planes in the opposite order."""
    affine = ras_to_lps(written.reader.metadata.grid(grid).affine)
    return np.linalg.det(affine[:3, :3]) < 0


def in_order(written, grid, volume):
    return volume[::-1] if flipped(written, grid) else volume


def affine_in_order(written, grid):
    found = written.reader.metadata.grid(grid)
    affine = ras_to_lps(found.affine)
    if flipped(written, grid):
        last = np.diag([1.0, 1.0, -1.0, 1.0])
        last[2, 3] = found.shape[0] - 1
        affine = affine @ last
    return affine


def reported(written, name):
    return next(o for o in written.exported.objects if o["name"] == name)


@pytest.mark.parametrize("name", SERIES)
def test_images_have_their_values_and_places(written, name):
    grid, modality = SERIES[name]
    image = series(written.home / name)
    values = in_order(written, grid, stored(written.reader, f"{grid}/image", modality=modality))
    error = np.abs(sitk.GetArrayFromImage(image).astype(float) - values).max()
    assert error == pytest.approx(reported(written, name)["max_abs_error"], abs=1e-9)
    assert error <= (0.5 if name == "CT_sCT_on_MRI" else 0)
    np.testing.assert_allclose(lps_affine(image), affine_in_order(written, grid), atol=2e-6)


def test_rounding_is_said_in_the_files(extended):
    rounded = reported(extended, "CT_sCT_on_MRI")["max_abs_error"]
    assert 0 < rounded <= 0.5
    for name in SERIES:
        said = read(extended.home / name / "0001.dcm").DerivationDescription
        if name == "CT_sCT_on_MRI":
            assert f"rounded to whole HU; largest error {rounded:.6g} HU" in said
        else:
            assert "Values are exactly those of the array." in said
        assert "a converted dataset (precision standard)" in said
    assert "precision standard" in read(extended.home / "RTDOSE.dcm").DerivationDescription
    assert extended.exported.report["precision"] == "standard"
    assert json.loads((extended.home / "report.json").read_text()) == json.loads(
        json.dumps(extended.exported.report)
    )


def test_dose_is_within_half_its_scaling_and_in_place(written):
    file = written.home / "RTDOSE.dcm"
    data = read(file)
    values = in_order(written, "dose", stored(written.reader, "dose/dose")).astype(float)
    scaling = float(data.DoseGridScaling)
    assert len(data["DoseGridScaling"].value.original_string) <= 16
    found = data.pixel_array * scaling
    error = np.abs(found - values).max()
    assert error == reported(written, "RTDOSE")["max_abs_error_gy"]
    assert error <= scaling / 2 * (1 + 1e-9)
    assert scaling < 1e-7
    affine = affine_in_order(written, "dose")
    image = sitk.ReadImage(str(file))
    np.testing.assert_allclose(lps_affine(image), affine, atol=2e-6)
    step = np.linalg.norm(affine[:3, 2])
    np.testing.assert_allclose(data.GridFrameOffsetVector, np.arange(len(values)) * step)
    assert (data.DoseUnits, data.BitsAllocated, data.PixelRepresentation) == ("GY", 32, 0)


@pytest.mark.parametrize("unite", [False, True], ids=["xor", "union"])
@pytest.mark.parametrize("name", SERIES)
def test_contours_hold_exactly_the_voxels_of_masks(written, name, unite):
    grid, _ = SERIES[name]
    found = masks(read(written.home / f"RTSTRUCT_{name}.dcm"), series(written.home / name), unite)
    labels = written.reader.metadata.labels(f"{grid}/clinical")["structure"]
    assert list(found) == labels
    for structure in labels:
        mask = stored(written.reader, f"{grid}/clinical/mask", structure=structure)
        assert np.array_equal(found[structure], in_order(written, grid, mask)), structure


@pytest.mark.parametrize("name", SERIES)
def test_contours_refer_to_the_plane_they_lie_in(written, name):
    images = {d.SOPInstanceUID: d for d in map(read, (written.home / name).iterdir())}
    data = read(written.home / f"RTSTRUCT_{name}.dcm")
    frame = data.ReferencedFrameOfReferenceSequence[0]
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {r.ReferencedSOPInstanceUID for r in referred.ContourImageSequence} == set(images)
    assert referred.SeriesInstanceUID == next(iter(images.values())).SeriesInstanceUID
    for _, kind, points, uids in contours(data):
        assert len(uids) == 1
        image = images[uids[0]]
        rows, columns = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        away = (points - np.array(image.ImagePositionPatient, float)) @ np.cross(rows, columns)
        nearest = image.SliceThickness / 2 if kind == "POINT" else 2e-6
        assert np.abs(away).max() <= nearest


def test_fiducials_are_points(extended):
    text = extended.reader.metadata.fiducial_record.text
    positions = [[float(n) for n in line.split(",")] for line in text.split()]
    for name in SERIES:
        data = read(extended.home / f"RTSTRUCT_{name}.dcm")
        points = [p[0] for _, kind, p, _ in contours(data) if kind == "POINT"]
        np.testing.assert_allclose(points, positions, atol=1e-6)
        markers = [o for o in data.RTROIObservationsSequence if o.RTROIInterpretedType == "MARKER"]
        assert len(markers) == len(positions) == 3


SEGMENTATIONS = {
    "SEG_MR_T2w_clinical_1": ("mri", "mri/clinical/mask", "MANUAL"),
    "SEG_MR_T2w_nnunet_1": ("mri", "mri/nnunet/mask", "AUTOMATIC"),
    "SEG_MR_T2w_nnunet_fold_1": ("mri", "mri/nnunet/fold_mask", "AUTOMATIC"),
    "SEG_MR_T2w_observer_1": ("mri", "mri/observers/mask", "SEMIAUTOMATIC"),
    "SEG_CT_sCT_clinical_1": ("sct", "sct/clinical/mask", "MANUAL"),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_segments_are_the_masks(written, name):
    grid, path, algorithm = SEGMENTATIONS[name]
    if path not in written.reader.metadata.arrays:
        pytest.skip("a base patient")
    data = hd.seg.segread(written.home / f"{name}.dcm")
    folder = written.home / ("MR_T2w" if grid == "mri" else "CT_sCT")
    uids = [read(f).SOPInstanceUID for f in sorted(folder.iterdir())]
    found = data.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    records = written.reader.array(path).sources
    assert found.shape[-1] == len(records)
    for number, record in enumerate(records):
        mask = in_order(written, grid, stored(written.reader, path, **record.labels))
        assert np.array_equal(found[..., number], mask)
        segment = data.get_segment_description(number + 1)
        assert segment.SegmentAlgorithmType == algorithm
        assert ("SegmentationAlgorithmIdentificationSequence" in segment) == (algorithm != "MANUAL")
        assert all(str(v) in segment.SegmentLabel for v in record.labels.values())


def test_what_is_tracked_is_a_structure_of_one_patient(extended, askew):
    found = [
        {s.SegmentLabel: s.TrackingUID for s in read(file).SegmentSequence}
        for file in (
            extended.home / "SEG_MR_T2w_clinical_1.dcm",
            extended.home / "SEG_CT_sCT_clinical_1.dcm",
            askew.home / "SEG_MR_T2w_clinical_1.dcm",
        )
    ]
    assert found[0] == found[1]
    assert found[0].keys() == found[2].keys()
    assert not set(found[0].values()) & set(found[2].values())


def test_sides_of_heads_of_femurs(extended):
    data = hd.seg.segread(extended.home / "SEG_MR_T2w_clinical_1.dcm")
    sides = {
        s.SegmentLabel: k.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning
        for s in data.SegmentSequence
        if "SegmentedPropertyTypeModifierCodeSequence"
        in (k := s.SegmentedPropertyTypeCodeSequence[0])
    }
    assert sides == {"FemoralHead_L": "Left", "FemoralHead_R": "Right"}


@pytest.mark.parametrize("structure", ["CTVT_427", "Rectum"])
def test_uncertainty_is_the_same_floats(extended, structure):
    data = read(extended.home / f"UNCERTAINTY_{structure}.dcm")
    values = stored(extended.reader, "mri/nnunet/uncertainty", structure=structure)
    frames = np.frombuffer(data.FloatPixelData, "<f4").reshape(values.shape)
    positions = [
        f.PlanePositionSequence[0].ImagePositionPatient
        for f in data.PerFrameFunctionalGroupsSequence
    ]
    order = np.argsort(np.array(positions, float)[:, 2])
    assert np.array_equal(frames[order], values)
    planes = planes_of(extended.reader.metadata.grid("mri"), "mri")
    np.testing.assert_allclose(np.array(positions, float)[order], planes.positions, atol=1e-6)
    item = data.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert item.RealWorldValueSlope == 1


def test_sheared_grids_are_refused():
    affine = np.diag([-0.5, -0.5, 2.5, 1.0])
    planes_of(Grid(affine, (20, 100, 100)), "mri")
    affine[0, 2] = 1e-4 / 19 * 0.9  # the last plane is moved by less than what headers round
    planes_of(Grid(affine, (20, 100, 100)), "mri")
    affine[0, 2] = 0.1
    with pytest.raises(ValueError, match=r"grid mri are not at right angles.* 1\.[89]"):
        planes_of(Grid(affine, (20, 100, 100)), "mri")


def test_everything_is_of_one_patient_study_and_frame(extended):
    data = [read(f) for f in all_files(extended.home)]
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({d.get(name) for d in data}) == 1, name
    assert data[0].PatientID == extended.patient_id
    assert len({d.SOPInstanceUID for d in data}) == len(data)
    assert len({(d.SeriesInstanceUID, d.SeriesNumber) for d in data}) == len(
        {d.SeriesInstanceUID for d in data}
    )
    assert len({d.SeriesNumber for d in data}) == len({d.SeriesInstanceUID for d in data})
