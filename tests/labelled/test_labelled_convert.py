"""Images for nibabel and SimpleITK: every value where the labelled array has it."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import xarray as xr

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError

CUTS = [{}, {"z": slice(None, None, -2), "x": slice(2, 7)}, {"y": 3}, {"z": [2], "x": [4]}]


@pytest.mark.parametrize("cut", CUTS)
def test_nifti_holds_every_value_in_its_place(either: xr.Dataset, cut: dict) -> None:
    part = either.lp.track().dose.isel(cut) if cut else either.lp.track().dose
    part = part.assign_attrs({k: either.attrs[k] for k in ("affine", "shape")})
    image = part.lp.to_nifti()
    np.testing.assert_array_equal(image.affine, part.lp.affine)
    whole = np.linalg.inv(np.reshape(either.attrs["affine"], (4, 4))) @ image.affine
    for voxel in np.ndindex(image.shape):
        i, j, k = np.rint(whole @ (*voxel, 1)).astype(int)[:3]
        assert image.dataobj[voxel] == either.dose.values[k, j, i]
    assert image.get_data_dtype() == np.float32


def test_nifti_survives_being_saved(either: xr.Dataset, tmp_path: Path) -> None:
    either.mask.attrs.update({k: either.attrs[k] for k in ("affine", "shape")})
    image = either.mask.sel(structure="CTVT_427").lp.to_nifti()
    nib.save(image, tmp_path / "mask.nii.gz")
    back = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    assert back.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(
        np.asanyarray(back.dataobj).T, either.mask.sel(structure="CTVT_427").values
    )
    np.testing.assert_allclose(back.affine, np.reshape(either.attrs["affine"], (4, 4)), atol=1e-5)
    assert back.header["qform_code"] == back.header["sform_code"] == 1
    assert back.header.get_xyzt_units()[0] == "mm"
    by_itk = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    there = by_itk.TransformIndexToPhysicalPoint((3, 2, 1))
    expected = np.reshape(either.attrs["affine"], (4, 4)) @ [3, 2, 1, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(there, expected[:3], atol=1e-4)


def test_nifti_of_a_stored_array_is_its_file(extended: lp.Patient, phantom_source: Path) -> None:
    array = extended.mri.image.sel(modality="T2w")
    image = array.lp.to_nifti()
    file = nib.Nifti1Image.from_filename(
        phantom_source / json.loads(array.attrs["sources"])[0]["path"]
    )
    np.testing.assert_array_equal(image.affine, file.affine)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), file.get_fdata())


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float64, np.uint8])
def test_nifti_keeps_the_type(aligned: xr.Dataset, dtype: type) -> None:
    image = aligned.dose.astype(dtype).lp.to_nifti()
    assert image.get_data_dtype() == dtype


def test_sitk_points_are_the_coordinates(aligned: xr.Dataset) -> None:
    part = aligned.dose.isel(z=slice(None, None, -2), y=slice(1, None, 3), x=slice(2, 7))
    image = part.lp.to_sitk()
    for i, j, k in product(*(range(part.sizes[d]) for d in "xyz")):
        here = part.isel(x=i, y=j, z=k)
        point = image.TransformIndexToPhysicalPoint((i, j, k))
        np.testing.assert_allclose(point, [float(here[d]) for d in "xyz"], atol=1e-9)
        assert image.GetPixel(i, j, k) == float(here)


def test_sitk_of_an_oblique_array(askew: lp.Patient, oblique_source: Path) -> None:
    array = askew.clinical.mask.sel(structure="BODY")
    source = next(
        s for s in json.loads(array.attrs["sources"]) if s["labels"] == {"structure": "BODY"}
    )
    file, image = sitk.ReadImage(str(oblique_source / source["path"])), array.lp.to_sitk()
    assert image.GetPixelID() == sitk.sitkUInt8
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(image, get)(), getattr(file, get)(), atol=1e-4)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(image) > 0, sitk.GetArrayFromImage(file) > 0
    )


def test_sitk_that_is_not_there(aligned: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UsageError, match="pip install SimpleITK"):
        aligned.dose.lp.to_sitk()


def test_several_volumes_are_refused_with_their_labels(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match=r"'CTVT_427', 'BODY'.*sel\(structure='CTVT_427'\)"):
        aligned.mask.lp.to_nifti()


def test_a_lost_dimension_is_refused(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match=r"'z'.*isel\(z=\[3\]\)"):
        aligned.dose.isel(z=3, drop=True).lp.to_nifti()
