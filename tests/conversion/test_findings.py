"""What is odd and yet converted: said in the findings, and read as it should be."""

from __future__ import annotations

import gzip
import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from trees import (
    AFFINES,
    MRI,
    NEW,
    SCT,
    SHAPES,
    Workplace,
    edit,
    nifti,
    patch,
    uncompressed,
    write_nifti,
)

from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import read_table
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.storage.location import Location

MASK = "MR_StorT2/mask_Rectum.nii.gz"
NNUNET = "MR_StorT2/nnUNetOutput"


def convert(work: Workplace, precision: Precision = "standard") -> tuple[str, ...]:
    """Findings of the patient, which has to convert."""
    result = work.convert_one(precision)
    assert result.error is None
    return result.findings


def exported(work: Workplace, tmp_path: Path, path: str) -> bytes:
    out = tmp_path / "exported"
    done = export_patient(Location(work.dataset), NEW, out)
    relative = f"{work.folder.parent.name}/{NEW}/{path}"
    assert relative in done.identical
    return uncompressed(out / relative)


#: Bits of NaN (quiet and signalling, with payload), infinities and -0.0.
ODD_BITS = {
    "f4": [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000],
    "f8": [
        0x7FF8000020000000,
        0xFFF8123460000000,
        0x7FF0000020000001,
        0x7FF0000000000000,
        0xFFF0000000000000,
        0x8000000000000000,
    ],
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("path", [MRI, "sCT/image.nii.gz", "sCT/dose_original.nii.gz"])
def test_inf_and_nan_are_kept_bit_for_bit_and_found(
    work: Workplace, tmp_path: Path, dtype: str, path: str
) -> None:
    grid = {MRI: "mri", SCT: "sct"}.get(path, "dose")
    voxels = np.arange(np.prod(SHAPES[grid]), dtype=dtype).reshape(SHAPES[grid])
    voxels.reshape(-1)[3:9] = np.array(ODD_BITS[dtype], f"u{voxels.itemsize}").view(dtype)
    write_nifti(work.folder / path, voxels, AFFINES[grid])
    # A float64 image beside it would leave no type for float32 with a signalling NaN.
    (work.folder / "sCT/image_reg2MRI.nii.gz").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings = convert(work, "lossless")
    assert f"{path}: 5 voxels are inf or NaN" in findings
    assert exported(work, tmp_path, path) == uncompressed(work.folder / path)


def test_standard_keeps_inf_and_nan_of_float32_bit_for_bit(work: Workplace, tmp_path: Path) -> None:
    voxels = np.full(SHAPES["sct"], 0.5, np.float32)
    voxels.reshape(-1)[3:9] = np.array(ODD_BITS["f4"], "u4").view("f4")
    write_nifti(work.folder / SCT, voxels, AFFINES["sct"])
    assert f"{SCT}: 5 voxels are inf or NaN" in convert(work)
    assert exported(work, tmp_path, SCT) == uncompressed(work.folder / SCT)


def test_standard_rounds_float64_beside_inf_and_nan_which_stay_so(work: Workplace) -> None:
    voxels = np.full(SHAPES["sct"], 0.1)
    voxels[0, 0, :3] = [np.nan, np.inf, -np.inf]
    write_nifti(work.folder / SCT, voxels, AFFINES["sct"])
    assert f"{SCT}: 3 voxels are inf or NaN" in convert(work)
    with xr.open_zarr(work.store, group="sct") as sct:
        stored = sct.image.values[0]
        source = json.loads(sct.image.attrs["sources"])[0]
    np.testing.assert_array_equal(stored, voxels.astype(np.float32))
    assert not source["exact"]
    assert source["max_abs_error"] == abs(float(np.float32(0.1)) - 0.1)


def test_a_volume_of_nothing_but_nan_has_no_range(work: Workplace) -> None:
    voxels = np.full(SHAPES["dose"], np.nan, np.float32)
    write_nifti(work.folder / "sCT/dose_original.nii.gz", voxels, AFFINES["dose"])
    convert(work)
    finalise(work.dataset)
    row = patients(work)[NEW]
    assert row["dose_min_gy"] is None
    assert row["dose_max_gy"] is None


def patients(work: Workplace) -> dict[str, dict[str, object]]:
    location = Location(work.dataset)
    manifest = finalise(work.dataset).manifest
    return {r["patient_id"]: r for r in read_table(location, manifest, "patients").to_pylist()}


def test_an_all_zero_mask_is_found_and_still_there(work: Workplace, tmp_path: Path) -> None:
    write_nifti(work.folder / MASK, np.zeros(SHAPES["mri"], np.uint8), AFFINES["mri"])
    assert f"{MASK}: all-zero mask" in convert(work)
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        assert not clinical.mask.sel(structure="Rectum").values.any()
    assert exported(work, tmp_path, MASK) == uncompressed(work.folder / MASK)


@pytest.mark.parametrize(
    ("dtype", "foreground"),
    [("u1", 255), ("i2", -7), ("f4", 0.1), ("f8", 1e-300), ("i8", 2**53 + 1), ("u8", 2**64 - 1)],
)
def test_a_mask_of_zero_and_any_other_value_comes_back_as_it_was(
    work: Workplace, tmp_path: Path, dtype: str, foreground: float
) -> None:
    voxels = np.zeros(SHAPES["mri"], dtype)
    voxels[1:3, 2:5, 3:6] = foreground
    write_nifti(work.folder / MASK, voxels, AFFINES["mri"])
    assert not any(f.startswith(f"{MASK}: ") for f in convert(work))
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        stored = clinical.mask.sel(structure="Rectum").values
    assert stored.dtype == bool
    np.testing.assert_array_equal(stored, voxels != 0)
    assert exported(work, tmp_path, MASK) == uncompressed(work.folder / MASK)


@pytest.mark.parametrize(
    ("dtype", "raw", "slope", "inter"),
    [
        ("u1", (0, 1), 300.0, 0.0),
        ("u1", (7, 9), 0.5, -3.5),
        ("i2", (0, 5), -2.0, 0.0),
        ("f4", (0.0, 0.3), 0.7, 0.0),
    ],
)
def test_a_mask_with_a_slope_is_read_as_scaled_and_comes_back(
    work: Workplace,
    tmp_path: Path,
    dtype: str,
    raw: tuple[float, float],
    slope: float,
    inter: float,
) -> None:
    voxels = np.full(SHAPES["mri"], raw[0], dtype)
    voxels[1:3, 2:5, 3:6] = raw[1]
    write_nifti(work.folder / MASK, voxels, AFFINES["mri"], slope=slope, inter=inter)
    assert not any(f.startswith(f"{MASK}: ") for f in convert(work))
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        stored = clinical.mask.sel(structure="Rectum").values
    np.testing.assert_array_equal(stored, voxels == np.array(raw[1], dtype))
    assert exported(work, tmp_path, MASK) == uncompressed(work.folder / MASK)


def test_unknown_files_and_structures_are_named_and_left_out(work: Workplace) -> None:
    before = convert(work)
    (work.folder / "MR_StorT2/mask_Sigmoid.nii.gz").write_bytes(b"not even gzip")
    (work.folder / "notes.txt").write_text("hello")
    (work.folder / "MR_StorT2/nnUNetOutput").mkdir()
    (work.folder / f"{NNUNET}/mask_Rectum_nnUNet.nii.gz").write_bytes(b"")  # of extended alone
    findings = convert(work)
    unknown = ("MR_StorT2/mask_Sigmoid.nii.gz", f"{NNUNET}/mask_Rectum_nnUNet.nii.gz", "notes.txt")
    assert set(findings) - set(before) == {f"unknown file left out: {u}" for u in unknown}
    with xr.open_datatree(work.store, engine="zarr") as tree:
        assert "Sigmoid" not in tree["mri/clinical"].structure.values
        assert "nnunet" not in tree["mri"].children


@pytest.mark.skipif(os.name != "posix", reason="file names of any bytes")
def test_a_file_name_that_is_no_text_is_named_in_findings_and_tables(work: Workplace) -> None:
    (work.folder / os.fsdecode(b"mask_\xff.nii.gz")).write_bytes(b"")
    assert "unknown file left out: mask_\\udcff.nii.gz" in convert(work)
    assert "unknown file left out: mask_\\udcff.nii.gz" in patients(work)[NEW]["findings"]


def test_absent_structures_that_are_not_listed_are_found(whole: Workplace) -> None:
    (whole.folder / MASK).unlink()
    (whole.folder / "sCT/mask_PenileBulb.nii.gz").unlink()
    assert set(convert(whole)) == {
        f"absent: {MASK} (not listed as missing)",
        "absent: sCT/mask_PenileBulb.nii.gz (not listed as missing)",
    }
    with xr.open_datatree(whole.store, engine="zarr") as tree:
        assert "Rectum" not in tree["mri/clinical"].structure.values
        assert "Rectum" in tree["sct/clinical"].structure.values
        with pytest.raises(KeyError):
            tree["mri/clinical"].mask.sel(structure="Rectum")
    row = patients(whole)[NEW]
    assert row["missing_Rectum"] is True
    assert row["missing_structures"] == ["Rectum"]


def test_absent_structures_that_are_listed_are_no_finding(whole: Workplace) -> None:
    for grid in ("MR_StorT2", "sCT"):
        (whole.folder / grid / "mask_PenileBulb.nii.gz").unlink()
    listing = f'{{"{NEW}": ["mask_PenileBulb.nii.gz"]}}'
    (whole.source / "missingStructures_basePart.json").write_text(listing)
    assert convert(whole) == ()


def test_structures_that_are_listed_as_missing_but_there_are_found(whole: Workplace) -> None:
    (whole.source / "missingStructures_basePart.json").write_text(f'{{"{NEW}": ["Genitalia"]}}')
    assert set(convert(whole)) == {
        f"present although listed as missing: {grid}/mask_Genitalia.nii.gz"
        for grid in ("MR_StorT2", "sCT")
    }


def test_missing_folds_and_observers_are_marked_as_holes(extended: Workplace) -> None:
    gone = [
        f"{NNUNET}/folds/mask_Rectum_nnUNet_fold_3.nii.gz",
        "MR_StorT2/observerData/mask_CTVT_427_step2_obsC.nii.gz",
    ]
    for path in gone:
        (extended.folder / path).unlink()
    assert set(convert(extended)) == {f"absent: {path}" for path in gone}
    with xr.open_datatree(extended.store, engine="zarr") as tree:
        nnunet, observers = tree["mri/nnunet"], tree["mri/observers"]
        assert nnunet.fold.values.tolist() == list(range(10))
        holes = ~nnunet.fold_present
        assert int(holes.sum()) == 1
        assert bool(holes.sel(structure="Rectum", fold=3))
        assert not nnunet.fold_mask.sel(structure="Rectum", fold=3).values.any()
        assert nnunet.fold_mask.sel(structure="Rectum", fold=4).values.any()
        holes = ~observers.present
        assert int(holes.sum()) == 1
        assert bool(holes.sel(structure="CTVT_427", step=2, observer="obsC"))


def test_a_fold_that_no_target_has_is_no_label(extended: Workplace) -> None:
    for target in ("CTVT_427", "Rectum"):
        (extended.folder / f"{NNUNET}/folds/mask_{target}_nnUNet_fold_9.nii.gz").unlink()
    convert(extended)
    with xr.open_zarr(extended.store, group="mri/nnunet") as nnunet:
        assert nnunet.fold.values.tolist() == list(range(9))
        assert nnunet.fold_present.values.all()


def test_folds_without_their_ensemble_are_kept(extended: Workplace) -> None:
    (extended.folder / f"{NNUNET}/mask_Rectum_nnUNet.nii.gz").unlink()
    (extended.folder / f"{NNUNET}/mask_CTVT_427_nnUNet.nii.gz").unlink()
    findings = convert(extended)
    assert f"absent: {NNUNET}/mask_Rectum_nnUNet.nii.gz" in findings
    with xr.open_zarr(extended.store, group="mri/nnunet") as nnunet:
        assert nnunet.structure.values.tolist() == ["CTVT_427", "Rectum"]
        assert nnunet.fold_mask.sel(structure="Rectum", fold=0).values.any()
        assert "mask" not in nnunet


def test_one_ensemble_of_two_is_marked(extended: Workplace) -> None:
    (extended.folder / f"{NNUNET}/mask_Rectum_nnUNet.nii.gz").unlink()
    convert(extended)
    with xr.open_zarr(extended.store, group="mri/nnunet") as nnunet:
        assert nnunet.structure.values.tolist() == ["CTVT_427", "Rectum"]
        assert nnunet.mask_present.values.tolist() == [True, False]
        assert nnunet.uncertainty_present.values.tolist() == [True, True]


def big_endian(path: Path) -> None:
    little = np.frombuffer(uncompressed(path)[352:], "<i2").reshape(SHAPES["mri"])
    write_nifti(path, little, AFFINES["mri"], order=">")


def four_dimensional(path: Path) -> None:
    patch("dim", 4, 9, 8, 5, 1, 1, 1, 1)(path)


def seven_dimensional(path: Path) -> None:
    patch("dim", 7, 9, 8, 5, 1, 1, 1, 1)(path)


def disagreeing(path: Path) -> None:
    def move_qform(data: bytes) -> bytes:
        return data[:268] + struct.pack("<f", 12.0) + data[272:]  # qoffset_x: 2 -> 12

    edit(path, move_qform)


def unusable_qform(path: Path) -> None:
    patch("quatern_b", 2.0)(path)  # no unit quaternion begins so


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (big_endian, "big-endian"),
        (four_dimensional, "4-D with one volume"),
        (seven_dimensional, "7-D with one volume"),
        (disagreeing, "sform and qform disagree by 10 mm; the sform was used"),
        (unusable_qform, "qform cannot be used"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_an_odd_header_is_read_correctly_and_found(
    work: Workplace, tmp_path: Path, damage: Callable[[Path], None], finding: str
) -> None:
    path = work.folder / MRI
    expected = np.frombuffer(uncompressed(path)[352:], "<i2").reshape(SHAPES["mri"])
    damage(path)
    findings = convert(work)
    assert any(f.startswith(f"{MRI}: {finding}") for f in findings), findings
    with xr.open_zarr(work.store, group="mri") as mri:
        np.testing.assert_array_equal(mri.image.sel(modality="T2w").values, expected)
        np.testing.assert_array_equal(np.reshape(mri.attrs["affine"], (4, 4)), AFFINES["mri"])
    assert exported(work, tmp_path, MRI) == uncompressed(path)


def test_nifti_2_and_a_gzip_of_several_members_are_read_whole(
    work: Workplace, tmp_path: Path
) -> None:
    path = work.folder / MRI
    voxels = np.frombuffer(uncompressed(path)[352:], "<i2").reshape(SHAPES["mri"])
    data = nifti(voxels, AFFINES["mri"], version=2)
    members = [data[:100], data[100:541], b"", data[541:700], data[700:]]
    path.write_bytes(b"".join(gzip.compress(m) for m in members) + bytes(64))  # zero padding
    assert not any(f.startswith(f"{MRI}: ") for f in convert(work))
    with xr.open_zarr(work.store, group="mri") as mri:
        np.testing.assert_array_equal(mri.image.sel(modality="T2w").values, voxels)
        source = json.loads(mri.image.attrs["sources"])[0]
    assert source["bytes"] == path.stat().st_size
    assert exported(work, tmp_path, MRI) == data
