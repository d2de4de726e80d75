"""Faults that were reported of other programs, tried on ours: see docs/tried.md."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from trees import AFFINES, MRI, NEW, SHAPES, Workplace, patch, snapshot, uncompressed, write_nifti

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.storage.location import Location

MASK = "MR_StorT2/mask_Rectum.nii.gz"
DOSE = "MR_StorT2/dose_interpolated.nii.gz"


def opened(work: Workplace, precision: str = "standard") -> lp.Patient:
    """The patient, converted; the other one of the tree is not."""
    result = work.convert_one(precision)
    assert result.status == "converted", result.error
    finalise(work.dataset)
    return lp.open_cohort(work.dataset)[NEW]


@pytest.mark.parametrize(("dtype", "value"), [("u2", 3.0), ("i4", 1.0)])
def test_a_mask_that_a_tool_saved_with_a_scale_is_the_mask(
    work: Workplace, dtype: str, value: float
) -> None:
    """nipy/nibabel#1344, #1001: labels come back as 2.9999999993."""
    mask = np.zeros(SHAPES["mri"])
    mask[2, 3:5, 3:6] = value
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(mask.transpose(), AFFINES["mri"], header)
    image.set_qform(AFFINES["mri"], 1)
    image.set_sform(AFFINES["mri"], 1)
    image.to_filename(work.folder / MASK)
    assert nib.load(work.folder / MASK).dataobj.slope not in (0, 1)
    found = opened(work).mask("Rectum").values
    np.testing.assert_array_equal(found, mask > 0)


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (np.nan, np.nan), (np.inf, 5.0)])
def test_a_scale_that_is_none_scales_nothing(work: Workplace, slope: float, inter: float) -> None:
    """layerfMRI/LAYNII#88, nipreps/fmriprep#2507: all zeros, or all NaN."""
    voxels = np.arange(np.prod(SHAPES["mri"]), dtype=np.int16).reshape(SHAPES["mri"])
    write_nifti(work.folder / MRI, voxels, AFFINES["mri"], slope=slope, inter=inter)
    found = opened(work).mri.image.sel(modality="T2w").values
    np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("precision", ["standard", "compact"])
def test_the_ends_of_a_type_do_not_wrap(work: Workplace, precision: str) -> None:
    """icometrix/dicom2nifti#144: -32768 negated stays -32768."""
    path = "sCT/image.nii.gz"
    ends = np.zeros(SHAPES["sct"], np.int16)
    ends[0, 0, :2] = -32768, 32767
    write_nifti(work.folder / path, ends, AFFINES["sct"])
    np.testing.assert_array_equal(opened(work, precision).sct.image.values[0], ends)


def test_minus_zero_and_every_nan_come_back_bit_for_bit(work: Workplace, tmp_path) -> None:
    """zarr-developers/zarr-python#3216, #1000: chunks that only equal the fill value are lost."""
    dose = np.full(SHAPES["mri"], -0.0, np.float32)
    dose.view(np.uint32)[-1, -1, :3] = 0x7F800001, 0xFFC00123, 0x7FC00000
    write_nifti(work.folder / DOSE, dose, AFFINES["mri"])
    patient = opened(work, "lossless")
    np.testing.assert_array_equal(patient.mri.dose.values.view("u4"), dose.view("u4"))
    export_patient(Location(work.dataset), NEW, tmp_path / "out")
    back = tmp_path / "out" / "basePart" / NEW / DOSE
    assert uncompressed(back) == uncompressed(work.folder / DOSE)


def test_a_structure_takes_no_part_in_dose_statistics_where_its_dose_is_no_number(
    work: Workplace,
) -> None:
    """duckdb/duckdb#25521: SQL has NaN above every number, and a mean with it is NaN."""
    dose = np.ones(SHAPES["mri"], np.float32)
    dose[2] = np.nan
    write_nifti(work.folder / DOSE, dose, AFFINES["mri"])
    patient = opened(work)
    cohort = lp.open_cohort(work.dataset)
    for above in ("Rectum.dose_mean_gy > 60", "NOT Rectum.dose_mean_gy < 60", "Rectum.d95_gy > 60"):
        assert cohort.where(above).ids == []
    assert cohort.where("Rectum.dose_mean_gy IS NULL AND Rectum.v95_pct IS NULL").ids == [NEW]
    assert patient.row["findings"].count(f"{DOSE}: 72 voxels are inf or NaN") == 1
    for name in cohort.manifest.tables:
        columns = cohort.table(name).to_pydict().values()
        assert not any(isinstance(v, float) and np.isnan(v) for c in columns for v in c), name


def test_a_structure_that_went_away_is_in_no_metadata(work: Workplace) -> None:
    """zarr-developers/zarr-python#2921: consolidated metadata that tell of what was."""
    before = opened(work)
    assert "PenileBulb" in before.clinical.structure
    for path in ("MR_StorT2/mask_PenileBulb.nii.gz", "sCT/mask_PenileBulb.nii.gz"):
        (work.folder / path).unlink()
    (work.folder / "sCT/mask_BODY.nii.gz").unlink()  # and with it all of sct/clinical
    opened(work)
    known = json.loads((work.store / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    there = {p.parent.relative_to(work.store).as_posix() for p in work.store.rglob("zarr.json")}
    assert {".", *known} == there
    assert "sct/clinical" not in known
    plain = xr.open_zarr(work.store, group="mri/clinical")
    assert "PenileBulb" not in plain.structure
    with pytest.raises(lp.LundProbeError, match="another one has taken its place"):
        before.clinical.mask.compute()  # pydata/xarray#4240: not the old values


def sheared(work: Workplace) -> lp.Patient:
    """The patient with an MRI whose slices are each moved along x, as a tilted gantry does."""
    affine = AFFINES["mri"].copy()
    affine[0, 2] = 0.15
    files = [*work.folder.glob("MR_StorT2/*.nii.gz"), work.folder / "sCT/image_reg2MRI.nii.gz"]
    for file in files:
        patch("srow_x", *affine[0])(file)
        patch("qform_code", 0)(file)
    return opened(work)


def test_no_reader_of_an_exported_image_gets_a_qform_that_cannot_say_its_grid(
    work: Workplace,
) -> None:
    """InsightSoftwareConsortium/ITK#3994: which of two affines a reader takes is its affair."""
    volume = sheared(work).mri.image.sel(modality="T2w")
    image = volume.lp.to_nifti()
    assert image.header["qform_code"] == 0
    assert image.header["sform_code"] == 1
    np.testing.assert_allclose(image.get_sform(), volume.lp.affine, atol=1e-6)
    sitk = volume.lp.to_sitk()
    point = (volume.lp.affine @ [3, 2, 4, 1])[:3] * (-1, -1, 1)
    np.testing.assert_allclose(sitk.TransformIndexToPhysicalPoint((3, 2, 4)), point, atol=1e-6)


def test_an_upright_image_keeps_both(work: Workplace) -> None:
    image = opened(work).mri.image.sel(modality="T2w").lp.to_nifti()
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-5)


def test_a_task_that_runs_again_writes_the_same_voxels(work: Workplace) -> None:
    """dask/distributed#2935: a worker that dies has its tasks run again, done ones too."""
    work.convert_one()
    first = voxel_objects(work)
    work.convert_one()
    assert first
    assert voxel_objects(work) == first


def voxel_objects(work: Workplace) -> dict[str, str]:
    """Hashes of the patient's shards; the metadata name the time of conversion."""
    return {k: v for k, v in snapshot(work.store).items() if not k.endswith("zarr.json")}
