"""Where voxels are said to lie, after any slicing, against the affine of the whole grid."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_volumes import SHAPE, aligned_affine, oblique_affine, volume

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.labelled.grid import home_of


def numbered(data: xr.Dataset) -> xr.DataArray:
    """An array whose values say which voxel of the whole each is."""
    number = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    return data.assign(number=(("z", "y", "x"), number)).number


def places(affine: np.ndarray, zyx: np.ndarray) -> np.ndarray:
    """RAS positions (3, n) of array indices (3, n)."""
    return (affine @ np.vstack([zyx[::-1], np.ones(zyx.shape[1])]))[:3]


def require_places(part: xr.DataArray, affine: np.ndarray) -> None:
    """The accessor puts every voxel where the whole grid's affine has it."""
    part = part.transpose("z", "y", "x")
    here = np.indices(part.shape).reshape(3, -1)
    there = np.array(np.unravel_index(part.values.ravel(), SHAPE))
    np.testing.assert_allclose(places(part.lp.affine, here), places(affine, there), atol=1e-9)


def slices(length: int) -> st.SearchStrategy[slice]:
    """Slices that leave two voxels or more, forwards and backwards, strided or not."""
    return st.slices(length).filter(lambda s: len(range(*s.indices(length))) > 1)


@settings(max_examples=50, deadline=None)
@given(z=slices(SHAPE[0]), y=slices(SHAPE[1]), x=slices(SHAPE[2]), is_oblique=st.booleans())
def test_affine_after_any_slicing(z: slice, y: slice, x: slice, is_oblique: bool) -> None:
    affine = oblique_affine() if is_oblique else aligned_affine()
    whole = volume(affine).lp.track() if is_oblique else volume(affine)
    part = numbered(whole).isel(z=z, y=y, x=x)
    require_places(part, affine)
    steps = [abs(s.step or 1) for s in (z, y, x)]
    np.testing.assert_allclose(part.lp.spacing_mm, np.array([3.0, 0.75, 1.25]) * steps)
    twice = part.isel(z=slice(None, None, -1))
    require_places(twice, affine)


def test_affine_after_selecting_by_mm_and_transposing(aligned: xr.Dataset) -> None:
    number = numbered(aligned)
    low, high = float(number.x[2]), float(number.x[6])
    require_places(number.sel(x=slice(low, high)).transpose("x", "z", "y"), aligned_affine())


def test_untouched_affine_is_the_stored_one_to_the_last_bit(either: xr.Dataset) -> None:
    np.testing.assert_array_equal(either.lp.affine, np.reshape(either.attrs["affine"], (4, 4)))
    assert either.lp.affine.dtype == np.float64


def test_a_slight_tilt_is_kept_through_slicing() -> None:
    affine = aligned_affine()
    affine[1, 0] = 4e-6  # within the tolerance for having mm coordinates
    data = volume(affine)
    assert "z" in data.coords
    expected = affine @ np.array([[-2, 0, 0, 8], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(data.isel(x=slice(None, None, -2)).lp.affine, expected)


def test_coordinates_go_before_attributes(aligned: xr.Dataset) -> None:
    moved = aligned.assign_coords(x=aligned.x + 0.4, z=aligned.z * 2)
    origin = aligned.lp.origin_mm * [2, 1, 1] + [0, 0, 0.4]
    np.testing.assert_allclose(moved.lp.origin_mm, origin)
    np.testing.assert_allclose(moved.lp.spacing_mm, [6.0, 0.75, 1.25])


def test_a_spacing_of_its_own_goes_before_attributes(aligned: xr.Dataset) -> None:
    wider = aligned.assign_coords(z=aligned.z[0] + (aligned.z - aligned.z[0]) * 1.2)
    np.testing.assert_allclose(wider.lp.spacing_mm, [3.6, 0.75, 1.25])


def test_an_affine_that_cannot_be_of_these_coordinates_is_not_heeded(aligned: xr.Dataset) -> None:
    stale = aligned.assign_attrs(affine=oblique_affine().tolist())
    np.testing.assert_allclose(stale.lp.affine, aligned_affine(), atol=1e-12)
    with pytest.raises(UsageError, match="attribute with its thickness"):
        _ = stale.isel(z=[2]).lp.spacing_mm


def test_a_datasets_own_affine_goes_before_its_files(extended: lp.Patient) -> None:
    moved = extended.mri.lp.affine + np.eye(4, k=3) * 1e-4
    home = home_of(extended.mri.assign_attrs(affine=moved.tolist()))
    assert home is not None
    np.testing.assert_array_equal(home.grid.affine, moved)
    assert (home.patient_id, home.name) == (extended.patient_id, "mri")


def test_origin_and_spacing_are_z_y_x_in_lps(aligned: xr.Dataset) -> None:
    np.testing.assert_allclose(aligned.lp.origin_mm, [100.25, 33.0, -20.5])
    np.testing.assert_allclose(aligned.lp.spacing_mm, [3.0, 0.75, 1.25])
    first = [float(aligned[d][0]) for d in "zyx"]
    np.testing.assert_allclose(aligned.lp.origin_mm, first)


@pytest.mark.parametrize("index", [3, [3], slice(3, 4)])
def test_one_voxel_has_the_thickness_of_the_stored_ones(
    either: xr.Dataset, index: int | list[int] | slice
) -> None:
    part = either.lp.track().isel(z=index)
    np.testing.assert_allclose(part.lp.spacing_mm, [3.0, 0.75, 1.25])
    expected = np.reshape(either.attrs["affine"], (4, 4)) @ [0, 0, 3, 1]
    np.testing.assert_allclose(part.lp.affine[:, 3], expected)


def test_coordinates_alone_are_enough(aligned: xr.Dataset) -> None:
    bare = aligned.dose.drop_attrs()
    np.testing.assert_allclose(bare.lp.affine, aligned_affine(), atol=1e-12)


def test_one_voxel_that_nothing_tells_the_thickness_of_is_refused(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match="one voxel along 'z' and no attribute"):
        _ = aligned.dose.drop_attrs().isel(z=[3]).lp.affine


def test_uneven_voxels_are_refused(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match=r"not evenly spaced along 'z': steps of \[3\. 9\.\]"):
        _ = aligned.isel(z=[0, 1, 4]).lp.affine


@pytest.mark.parametrize("z", [slice(1, None), slice(None, None, 2), 2])
def test_part_of_an_untracked_oblique_grid_is_refused(oblique: xr.Dataset, z: int | slice) -> None:
    with pytest.raises(UsageError, match=r"the location of the voxels .* `\.lp\.track\(\)`"):
        _ = oblique.isel(z=z).lp.affine


def test_oblique_without_anything_is_refused(oblique: xr.Dataset) -> None:
    with pytest.raises(UsageError, match="the stored grid is unknown"):
        _ = oblique.dose.lp.affine


def test_tracking_takes_a_volume(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match="expected z, y and x among them"):
        aligned.isel(z=3).lp.track()


def test_tracking_counts_from_the_grid_as_it_is(either: xr.Dataset) -> None:
    part = either.lp.track().isel(z=slice(4, None, -2), x=slice(2, None))
    again = part.lp.track()
    np.testing.assert_allclose(again.lp.affine, part.lp.affine, atol=1e-12)
    assert again.z_index.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("group", ["mri", "clinical", "sct", "dose", "nnunet", "observers"])
def test_every_group_and_array_of_a_store_is_where_its_nifti_file_is(
    extended: lp.Patient, phantom_source: Path, group: str
) -> None:
    data = getattr(extended, group)
    for array in (data, *(v for v in data.data_vars.values() if {"z", "y", "x"} <= set(v.dims))):
        named = (
            array
            if isinstance(array, xr.DataArray)
            else next(v for v in array.data_vars.values() if "sources" in v.attrs and "z" in v.dims)
        )
        file = nib.Nifti1Image.from_filename(
            phantom_source / json.loads(named.attrs["sources"])[0]["path"]
        )
        np.testing.assert_allclose(array.lp.affine, file.affine, atol=1e-3)
        np.testing.assert_allclose(data.lp.affine, array.lp.affine, atol=1e-9)


def test_an_oblique_patients_arrays_are_where_their_files_are(
    askew: lp.Patient, oblique_source: Path
) -> None:
    assert "z" not in askew.mri.coords
    for array in (askew.mri.image, askew.mri.dose, askew.clinical.mask):
        file = nib.Nifti1Image.from_filename(
            oblique_source / json.loads(array.attrs["sources"])[0]["path"]
        )
        np.testing.assert_allclose(array.lp.affine, file.affine, atol=1e-5)
        tracked = array.lp.track().isel(y=slice(5, 1, -1))
        np.testing.assert_allclose(tracked.lp.affine[:, 3], file.affine @ [0, 5, 0, 1], atol=1e-4)
    np.testing.assert_allclose(askew.clinical.lp.affine, askew.mri.lp.affine, atol=1e-5)
