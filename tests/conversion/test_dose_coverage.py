"""Tissue outside the planning dose grid has no dose: it is said, and never counts as 0 Gy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, lp.Cohort]:
    """A patient whose planning grid ends within the PTV, in z, and its dataset."""
    folder = tmp_path_factory.mktemp("cut")
    source = lp.write_phantom(folder / "source", patients=1, extended=0)
    (patient,) = take_inventory(source).patients
    home = source / patient.folder
    ptv = sitk.ReadImage(str(home / "sCT/mask_PTVT_427.nii.gz"))
    planes = np.flatnonzero((sitk.GetArrayFromImage(ptv) > 0).any(axis=(1, 2)))
    top = ptv.TransformIndexToPhysicalPoint((0, 0, int(planes[len(planes) // 2])))[2]
    path = home / "sCT/dose_original.nii.gz"
    dose = nib.load(path)
    z = [float((dose.affine @ [0, 0, k, 1])[2]) for k in range(dose.shape[2])]
    keep = sum(place <= top for place in z)
    nib.Nifti1Image(np.asarray(dose.dataobj)[:, :, :keep], dose.affine).to_filename(path)
    for place in ("sCT", "MR_StorT2"):  # as a resampler that writes 0 outside leaves them
        file = home / place / "dose_interpolated.nii.gz"
        image = nib.load(file)
        values = np.asarray(image.dataobj).copy()
        mm = [float((image.affine @ [0, 0, k, 1])[2]) for k in range(image.shape[2])]
        values[:, :, [k for k, place in enumerate(mm) if place > z[keep - 1] + 1e-3]] = 0
        nib.Nifti1Image(values, image.affine, image.header).to_filename(file)
    (patient,) = take_inventory(source).patients
    result = convert_patient(patient, folder / "dataset", "standard")
    assert result.status == "converted", result.error
    finalise(folder / "dataset")
    return home, lp.open_cohort(folder / "dataset")


def test_statistics_are_over_the_covered_part(cut: tuple[Path, lp.Cohort]) -> None:
    home, cohort = cut
    row = cohort.sql("SELECT * FROM planning WHERE structure = 'PTVT_427'").iloc[0]
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(home / "sCT/mask_PTVT_427.nii.gz"))) > 0
    dose = sitk.GetArrayFromImage(sitk.ReadImage(str(home / "sCT/dose_interpolated.nii.gz")))
    image = sitk.ReadImage(str(home / "sCT/image.nii.gz"))
    planned = sitk.ReadImage(str(home / "sCT/dose_original.nii.gz"))
    inside = np.zeros(mask.shape, bool)
    low, high = np.zeros(3), np.array(planned.GetSize()) - 1
    for k, j, i in np.argwhere(mask):
        point = image.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))
        place = np.array(planned.TransformPhysicalPointToContinuousIndex(point))
        inside[k, j, i] = ((place >= low - 1e-3) & (place <= high + 1e-3)).all()
    share = 100 * inside.sum() / mask.sum()
    assert 20 < share < 80
    assert row.dose_covered_pct == pytest.approx(share)
    values = dose[inside].astype(float)
    assert row.dose_mean_gy == pytest.approx(values.mean(), rel=1e-6)
    assert row.dose_min_gy == values.min() > 0
    assert row.v95_pct == pytest.approx(100 * np.mean(values >= 0.95 * 42.7))
    assert row.d98_gy == np.sort(values)[len(values) - int(np.ceil(0.98 * len(values)))]


def test_targets_that_are_not_covered_are_findings(cut: tuple[Path, lp.Cohort]) -> None:
    (findings,) = cut[1].patients.findings
    said = [f for f in findings if "planning dose grid" in f]
    assert any(f.startswith("PTVT_427 (sct grid)") for f in said)
    assert all("its dose statistics are over these" in f for f in said)


def test_a_phantom_whose_targets_are_covered_has_no_such_finding(dataset: Path) -> None:
    cohort = lp.open_cohort(dataset)
    assert not any("planning dose grid" in f for fs in cohort.patients.findings for f in fs)
    rows = cohort.sql("SELECT dose_covered_pct FROM clinical WHERE structure = 'PTVT_427'")
    assert (rows.dose_covered_pct == 100).all()


def test_views_are_one_source_and_one_grid(dataset: Path) -> None:
    cohort = lp.open_cohort(dataset)
    for view, grid in (("clinical", "mri"), ("planning", "sct")):
        rows = cohort.sql(f"SELECT DISTINCT source, grid FROM {view}")
        assert rows.to_numpy().tolist() == [["clinical", grid]]
    joined = cohort.sql(
        "SELECT p.volume_cc / c.volume_cc AS ratio FROM planning p JOIN clinical c "
        "USING (patient_id, structure) WHERE structure = 'Rectum'"
    )
    assert joined.ratio.between(0.5, 2).all()
    with pytest.raises(QueryError, match="Rectum"):
        cohort.sql("SELECT * FROM clinical WHERE structure = 'Recktum'")


def test_a_changed_mask_is_a_problem_by_its_hash(cut: tuple[Path, lp.Cohort]) -> None:
    location = Location(cut[1].location.url)
    assert not validate(location, deep=True).problems


def test_hash_and_margin_of_the_phantom(dataset: Path) -> None:
    cohort = lp.open_cohort(dataset)
    rows = cohort.sql("SELECT * FROM clinical")
    ptv = rows[rows.structure == "PTVT_427"]
    assert ptv.margin_max_mm.between(3, 15).all()
    assert (ptv.margin_min_mm <= ptv.margin_max_mm).all()
    assert rows[rows.structure != "PTVT_427"].margin_max_mm.isna().all()
    assert rows.mask_sha256.is_unique


def test_what_holds_what_and_the_fiducials_in_the_phantom(dataset: Path) -> None:
    cohort = lp.open_cohort(dataset)
    rows = cohort.sql(
        "SELECT * FROM structures JOIN patients USING (patient_id) WHERE source = 'clinical'"
    )
    targets = rows[rows.structure.isin(["CTVT_427", "PTVT_427"])]
    assert (targets.outside_voxels == 0).all()
    assert rows[~rows.structure.isin(["CTVT_427", "PTVT_427"])].outside_voxels.isna().all()
    ctv = rows[(rows.structure == "CTVT_427") & (rows.grid == "mri")]
    assert (ctv.fiducials_inside == ctv.n_fiducials).all()
    assert rows.drop(ctv.index).fiducials_inside.isna().all()
    listed = rows[rows.listed_by_authors]
    assert set(listed.structure) == {"Bladder"}
    assert (listed.components > 1).all()
