"""Voxels and fiducials that cannot be stored: their patient fails, and nothing wraps around."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from trees import AFFINES, FIDUCIALS, MRI, NEW, OLD, SCT, SHAPES, Workplace, snapshot, write_nifti

from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.precision import PRECISIONS, Precision
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT

MASK = "MR_StorT2/mask_Rectum.nii.gz"
DOSE = "MR_StorT2/dose_interpolated.nii.gz"
INF, NAN = float("inf"), float("nan")


def mask_of(dtype: str, background: float, *values: float) -> np.ndarray:
    mask = np.full(SHAPES["mri"], background, dtype)
    mask.reshape(-1)[7 : 7 + len(values)] = values
    return mask


@dataclass(frozen=True)
class BadMask:
    name: str
    voxels: np.ndarray
    finding: str


BAD_MASKS = [
    BadMask("three values", mask_of("u1", 0, 1, 2), "holds 0, 1, 2;"),
    BadMask("many values", mask_of("i2", 0, *range(1, 50)), "holds 0, 1, 2, 3, 4, 5;"),
    BadMask("NaN", mask_of("f4", 0, 1, NAN), "holds 0, 1.0, nan;"),
    BadMask("NaN first", mask_of("f4", 0, NAN, 1), "nan"),
    BadMask("NaN alone", mask_of("f4", 0, NAN), "nan"),
    BadMask("infinity", mask_of("f8", 0, INF), "inf"),
    BadMask("no zero", mask_of("u1", 1), "holds 1 and no 0"),
    BadMask("two values but no zero", mask_of("u1", 1, 2), "holds 1, 2 and no 0"),
    BadMask("minus zero", mask_of("f4", 0, 1, -0.0), "-0.0"),
    BadMask("minus zero alone", mask_of("f4", -0.0, 1), "-0.0"),
    BadMask("minus zero and no foreground", mask_of("f8", 0, -0.0), "-0.0"),
]


def expect_failure(
    work: Workplace, path: str, finding: str, remedy: str, precision: Precision = "standard"
) -> None:
    """The patient fails with that message, and its earlier store stays."""
    before = snapshot(work.store)
    result = work.convert_one(precision)
    error = result.error or ""
    assert result.status == "failed"
    assert error.startswith(f"basePart/{NEW}/{path}: "), error
    assert re.search(finding, error), error
    assert re.search(remedy, error), error
    assert snapshot(work.store) == before


@pytest.mark.parametrize("path", [MASK, DOSE, FIDUCIAL_TEXT])
def test_a_patient_who_fails_does_not_hinder_the_next(work: Workplace, path: str) -> None:
    if path == FIDUCIAL_TEXT:
        (work.folder / path).write_bytes(b"x,y,z\n1,2,3\n")
    else:
        voxels = mask_of("f8", 0, 1, 2) if path == MASK else mask_of("f8", 0, 1e300)
        write_nifti(work.folder / path, voxels, AFFINES["mri"])
    results = work.convert()
    assert {p: r.status for p, r in results.items()} == {NEW: "failed", OLD: "converted"}


@pytest.mark.parametrize("bad", BAD_MASKS, ids=lambda b: b.name.replace(" ", "-"))
def test_a_mask_that_is_not_two_valued_with_a_zero_fails_its_patient(
    work: Workplace, bad: BadMask
) -> None:
    write_nifti(work.folder / MASK, bad.voxels, AFFINES["mri"])
    expect_failure(work, MASK, bad.finding, "correct the file")


def test_a_mask_whose_slope_loses_its_numbers_fails_its_patient(work: Workplace) -> None:
    far = mask_of("i8", 1 << 60, (1 << 60) + 1, 1 << 61)
    write_nifti(work.folder / MASK, far, AFFINES["mri"], slope=1.0, inter=-float(1 << 60))
    expect_failure(work, MASK, "scl_slope", "correct the header")


def test_a_box_that_leaves_voxels_out_is_noticed(
    work: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are written and compared within their box alone: who says that it holds them all?"""

    def too_small(mask: np.ndarray) -> tuple[slice, ...] | None:
        box = bounding_box(mask)
        return box and (*box[:2], slice(box[2].start, box[2].stop - 1))

    monkeypatch.setattr("lundprobe_zarr.conversion.arrays.volumes.bounding_box", too_small)
    result = work.convert()[NEW]
    assert result.status == "failed"
    assert re.search(
        r"mask_\w+\.nii\.gz: \d+ voxels in the box .* expected all", result.error or ""
    )


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize(("path", "grid"), [(MRI, "mri"), (SCT, "sct"), (DOSE, "mri")])
def test_compact_refuses_what_is_not_finite_and_says_where(
    work: Workplace, path: str, grid: str, value: float
) -> None:
    voxels = np.ones(SHAPES[grid], np.float32)
    voxels[3, 2, 1] = value
    write_nifti(work.folder / path, voxels, AFFINES[grid])
    expect_failure(
        work, path, rf"{value} at voxel \(z, y, x\) = \(3, 2, 1\)", "standard", precision="compact"
    )


@dataclass(frozen=True)
class TooLarge:
    name: str
    path: str
    grid: str
    value: float
    precision: Precision
    finding: str


TOO_LARGE = [
    TooLarge("sCT beyond int32", SCT, "sct", 1e12, "compact", r"1000000000000.0 does not fit"),
    TooLarge("sCT below int32", SCT, "sct", -1e12, "compact", "does not fit int32"),
    TooLarge("dose beyond the bound", DOSE, "mri", 1e6 + 1 / 3, "compact", "within 0.001"),
    TooLarge("float64 beyond float32", SCT, "sct", 1e300, "standard", "does not fit float32"),
    TooLarge("dose beyond float32", DOSE, "mri", -1e39, "standard", "does not fit float32"),
]


@pytest.mark.parametrize("case", TOO_LARGE, ids=lambda c: c.name.replace(" ", "-"))
def test_values_that_do_not_fit_fail_the_patient(work: Workplace, case: TooLarge) -> None:
    voxels = np.full(SHAPES[case.grid], 0.1, np.float64)
    voxels[1, 1, 1] = case.value
    write_nifti(work.folder / case.path, voxels, AFFINES[case.grid])
    expect_failure(work, case.path, case.finding, "lossless", precision=case.precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [40000.0, -40000.0, 32768.0, 65536.0, -32769.0, 2.0**31 - 128])
def test_large_hounsfield_units_come_back_as_they_are(
    work: Workplace, precision: Precision, value: float
) -> None:
    voxels = np.full(SHAPES["sct"], -1000, np.float32)
    voxels[1, 1, 1] = value
    write_nifti(work.folder / SCT, voxels, AFFINES["sct"])
    assert work.convert_one(precision).error is None
    with xr.open_zarr(work.store, group="sct") as sct:
        stored = sct.image.sel(modality="sCT").values
    np.testing.assert_array_equal(stored.astype(np.float64), voxels.astype(np.float64))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_integer_that_no_float_holds_keeps_its_integer_type(
    work: Workplace, precision: Precision
) -> None:
    voxels = np.zeros(SHAPES["mri"], np.uint64)
    voxels[0, 0, :3] = [2**64 - 1, 2**53 + 1, 7]
    write_nifti(work.folder / MRI, voxels, AFFINES["mri"])
    (work.folder / "sCT/image_reg2MRI.nii.gz").unlink()
    assert work.convert_one(precision).error is None
    with xr.open_zarr(work.store, group="mri") as mri:
        np.testing.assert_array_equal(mri.image.sel(modality="T2w").values, voxels)


def test_images_without_a_common_type_fail_the_patient(work: Workplace) -> None:
    voxels = np.full(SHAPES["mri"], 2**64 - 1, np.uint64)
    write_nifti(work.folder / MRI, voxels, AFFINES["mri"])
    error = work.convert_one().error or ""
    assert error.startswith(f"basePart/{NEW}: array mri/image: no type holds all of its volumes")
    assert "check the source files" in error


def test_raw_integers_that_a_slope_loses_fail_the_patient(work: Workplace) -> None:
    voxels = np.full(SHAPES["mri"], 2**62, np.int64)
    voxels[0, 0, 0] += 1
    write_nifti(work.folder / MRI, voxels, AFFINES["mri"], slope=0.1, inter=3.0)
    expect_failure(work, MRI, "cannot be recovered", "correct the header")


def write(text: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text) and None


BAD_FIDUCIALS = {
    "empty": b"",
    "blank": b"\n \n",
    "two numbers a line": b"1,2\n3,4\n",
    "four numbers a line": b"1,2,3,4\n",
    "lines of different length": b"1,2,3\n4,5\n",
    "words": b"x,y,z\n1,2,3\n",
    "semicolons": b"1;2;3\n",
    "a missing number": b"1,,3\n",
    "NaN": b"1,2,nan\n",
    "infinity": b"1,2,inf\n",
    "beyond float64": b"1,2,1e999\n",
    "not UTF-8": b"\xff\xfe1,2,3\n",
    "a NUL": b"1,2,3\0\n",
    "underscores": b"1_0.5,2,3\n",
    "another script's digits": "\u0661\u0662.5,2,3\n".encode(),
    "decimal commas": b"1,5,2,5,3,5\n",
    "decimal commas between semicolons": b"1,5;2,5;3,5\n",
    "hexadecimal": b"0x1p3,2,3\n",
    "half a UTF-16 character": b"\xff\xfe1",
    "megabytes of sound lines": b"1,2,3\n" * 20_000,
    "a gzip file": b"\x1f\x8b\x08\x00\x00",
}


@pytest.mark.parametrize("text", BAD_FIDUCIALS.values(), ids=BAD_FIDUCIALS)
def test_unparsable_fiducials_fail_the_patient(work: Workplace, text: bytes) -> None:
    (work.folder / FIDUCIAL_TEXT).write_bytes(text)
    expect_failure(work, FIDUCIAL_TEXT, "expected one x,y,z per line", "correct the file")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (FIDUCIALS, 3),
        (FIDUCIALS.replace("\n", "\r\n"), 3),
        (FIDUCIALS.strip(), 3),
        (" 1.5 , -2e0 , +3 \n\n4,5,6\n", 2),
        ("1,2,3\n" * 4, 4),
    ],
)
def test_fiducials_of_any_sound_form_are_read(work: Workplace, text: str, count: int) -> None:
    (work.folder / FIDUCIAL_TEXT).write_bytes(text.encode())
    result = work.convert_one()
    assert result.status == "converted"
    expected = [[float(n) for n in line.split(",")] for line in text.split("\n") if line.strip()]
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        np.testing.assert_array_equal(clinical.fiducial_position.values, expected)
    odd = [f for f in result.findings if "fiducials; 3 are usual" in f]
    assert len(odd) == (count != 3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_fiducials_as_editors_save_them_are_read_and_come_back(
    work: Workplace, tmp_path: Path, encoding: str
) -> None:
    mark = "" if encoding == "utf-8-sig" else "\ufeff"
    data = (mark + FIDUCIALS.replace("\n", " \r\n")).encode(encoding)
    (work.folder / FIDUCIAL_TEXT).write_bytes(data)
    assert work.convert_one().error is None
    expected = [[float(n) for n in line.split(",")] for line in FIDUCIALS.split()]
    with xr.open_zarr(work.store, group="mri/clinical") as clinical:
        np.testing.assert_array_equal(clinical.fiducial_position.values, expected)
    export_patient(Location(work.dataset), NEW, tmp_path / "out")
    assert (tmp_path / "out" / "basePart" / NEW / FIDUCIAL_TEXT).read_bytes() == data
