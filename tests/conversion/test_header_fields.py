"""What a header says besides its voxels' type: against nibabel and SimpleITK, which read it too."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Workplace
from nibabel.nifti1 import Nifti1Header
from scipy.spatial.transform import Rotation
from trees import AFFINES, FIELDS, MRI, NEW, SHAPES, edit, nifti, uncompressed, write_nifti

from lundprobe_zarr.conversion.source.nifti import parse_header, peek_nifti
from lundprobe_zarr.errors import SourceError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.storage.location import Location

MASK = "MR_StorT2/mask_Rectum.nii.gz"
LENGTHS = (80, 84, 88, 268, 272, 276, *range(280, 328, 4))


def header(affine: np.ndarray, codes: tuple[int, int], **fields: Any) -> Nifti1Header:
    found = Nifti1Header(nifti(np.zeros((4, 5, 6), np.int16), affine, codes=codes)[:348])
    for name, value in fields.items():
        found[name] = value
    return found


def read(found: Nifti1Header) -> Any:
    return parse_header(bytes(found.binaryblock), "f")


def by_simpleitk(found: Nifti1Header, tmp_path: Path) -> np.ndarray:
    path = tmp_path / "itk.nii.gz"
    path.write_bytes(gzip.compress(bytes(found.binaryblock) + bytes(4 + 240)))
    image, affine = sitk.ReadImage(str(path)), np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return affine


def oblique(seed: int, left_handed: bool) -> np.ndarray:
    rng, affine = np.random.default_rng(seed), np.eye(4)
    turn = Rotation.from_euler("zxy", [np.pi * (seed % 2), *rng.uniform(-0.5, 0.5, 2)])
    sizes = rng.uniform(0.4, 3, 3) * [1, 1, -1 if left_handed else 1]
    affine[:3, :3] = turn.as_matrix() * sizes
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1)])
@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_affine_is_that_of_both_reference_readers(
    tmp_path: Path, seed: int, left_handed: bool, codes: tuple[int, int]
) -> None:
    found = header(oblique(seed, left_handed), codes)
    affine = read(found).affine
    np.testing.assert_allclose(affine, by_simpleitk(found, tmp_path), atol=5e-3)
    np.testing.assert_array_equal(affine, found.get_best_affine())


@pytest.mark.parametrize("first", [0.0, 2.0])
def test_pixdim_0_of_0_or_more_counts_as_1(tmp_path: Path, first: float) -> None:
    found = header(np.diag([2.0, 3, 4, 1]), (1, 0))
    found["pixdim"][0] = first
    affine = read(found).affine
    np.testing.assert_array_equal(affine, np.diag([2.0, 3, 4, 1]))
    np.testing.assert_allclose(affine, by_simpleitk(found, tmp_path))


@pytest.mark.parametrize("first", [-2.0, float("nan")])
def test_pixdim_0_that_readers_take_differently_is_refused(first: float) -> None:
    found = header(np.diag([2.0, 3, 4, 1]), (1, 0))
    found["pixdim"][0] = first
    with pytest.raises(SourceError, match="qfac"):
        read(found)


@pytest.mark.parametrize("length", [1 + 1e-7, 1 + 1e-6, 1 + 5e-6])
def test_a_quaternion_too_long_by_rounding_is_normalised(tmp_path: Path, length: float) -> None:
    found = header(np.diag([-2.0, -3, 4, 1]), (1, 0), quatern_d=length)
    np.testing.assert_allclose(read(found).affine, by_simpleitk(found, tmp_path), atol=1e-5)


def test_a_quaternion_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="orientation cannot be used"):
        read(header(np.diag([-2.0, -3, 4, 1]), (1, 0), quatern_d=1.01))


def test_a_negative_code_counts_as_none() -> None:
    found = header(np.diag([2.0, 3, 4, 1]), (1, 1), sform_code=-1, srow_x=[9, 0, 0, 0])
    np.testing.assert_array_equal(read(found).affine, np.diag([2.0, 3, 4, 1]))


def test_voxel_sizes_and_intercepts_that_itk_reads_otherwise_are_found() -> None:
    found = header(np.diag([2.0, 3, 4, 1]), (0, 1), scl_slope=0, scl_inter=5)
    found["pixdim"][1] = 1
    said = read(found).anomalies
    assert said[0].startswith("pixdim says voxels of 1 × 3 × 4 mm, the sform 2 × 3 × 4")
    assert said[1].startswith("scl_slope 0, so that scl_inter 5 was not added")


@pytest.mark.parametrize("code", [1004, 1007, 2003, 2006, 3001])
def test_voxels_that_are_no_single_quantity_are_refused(code: int) -> None:
    with pytest.raises(SourceError, match=f"intent_code {code}"):
        read(header(np.eye(4), (1, 1), intent_code=code))


def rescale(path: Path, code: int, factor: float) -> None:
    def change(data: bytes) -> bytes:
        raw = bytearray(data)
        raw[123] = code
        for place in LENGTHS:
            (value,) = struct.unpack_from("<f", raw, place)
            struct.pack_into("<f", raw, place, value * factor)
        return bytes(raw)

    edit(path, change)


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3), (9, 1e-3)])
def test_lengths_in_other_units_are_converted_to_mm_and_found(
    work: Workplace, tmp_path: Path, code: int, factor: float
) -> None:
    for path in work.folder.rglob("*.nii.gz"):
        rescale(path, code, factor)
    result = work.convert_one("lossless")
    assert result.error is None
    assert sum("its geometry was converted to mm" in f for f in result.findings) == 10
    layout = peek_nifti(work.folder / MRI, "f")
    np.testing.assert_allclose(layout.affine, AFFINES["mri"], rtol=1e-6)
    image = sitk.ReadImage(str(work.folder / MRI))
    np.testing.assert_allclose(image.GetSpacing(), [0.5, 0.5, 2.5], rtol=1e-6)
    export_patient(Location(work.dataset), NEW, tmp_path / "out")
    written = tmp_path / "out" / "basePart" / NEW / MRI
    assert uncompressed(written) == uncompressed(work.folder / MRI)


@pytest.mark.parametrize("code", [1, 3])
def test_millimetres_that_are_called_otherwise_are_refused(work: Workplace, code: int) -> None:
    rescale(work.folder / MASK, code, 1)
    assert "xyzt_units says" in (work.convert_one().error or "")


def test_metres_without_a_unit_beside_metres_are_refused_and_both_named(work: Workplace) -> None:
    for path in work.folder.rglob("*.nii.gz"):
        rescale(path, 0 if path.name == "mask_Rectum.nii.gz" else 1, 1e-3)
    assert "(lengths in no unit, there in metres)" in (work.convert_one().error or "")


@pytest.mark.parametrize("size", [48, (1 << 21) + 16])
def test_header_extensions_come_back(work: Workplace, tmp_path: Path, size: int) -> None:
    extension = struct.pack("<ii", size, 6) + b"x" * (size - 8)
    voxels = np.frombuffer(uncompressed(work.folder / MRI)[352:], "<i2").reshape(SHAPES["mri"])
    write_nifti(work.folder / MRI, voxels, AFFINES["mri"], extension=extension)
    assert work.convert_one("lossless").error is None
    export_patient(Location(work.dataset), NEW, tmp_path / "out")
    written = tmp_path / "out" / "basePart" / NEW / MRI
    assert uncompressed(written) == uncompressed(work.folder / MRI)
    assert nib.load(written).header.extensions[0].get_code() == 6


def test_extensions_that_claim_more_than_there_is_are_refused(work: Workplace) -> None:
    voxels, affine = np.zeros(SHAPES["mri"], np.int16), AFFINES["mri"]
    claim = struct.pack("<ii", 2_000_000_000, 6) + bytes(40)
    write_nifti(work.folder / MRI, voxels, affine, extension=claim)
    assert "claims 2000000000 bytes, with 48" in (work.convert_one().error or "")
    write_nifti(work.folder / MRI, voxels, affine)
    place, kind = FIELDS["vox_offset"]
    edit(work.folder / MRI, lambda d: d[:place] + struct.pack(f"<{kind}", 2e9) + d[place + 4 :])
    error = work.convert_one().error or ""
    assert "vox_offset 2e+09" in error
    assert f"at most {1 << 24}" in error
