"""Resampling against SimpleITK's on the same grid, and what it says of edges, masks and types."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import xarray as xr
from labelled_volumes import aligned_affine, volume

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError

SPACINGS = [(3.0, 0.75, 1.25), (2.0, 0.5, 0.8), (4.1, 1.7, 2.9), 1.1, (6.0, 1.5, 2.5), (50, 50, 50)]


def with_place(array: xr.DataArray, data: xr.Dataset) -> xr.DataArray:
    """An array with the attributes that place it on an oblique grid, as stored ones have."""
    return array.assign_attrs({k: data.attrs[k] for k in ("affine", "shape")})


def by_simpleitk(array: xr.DataArray, spacing: object, method: int) -> np.ndarray:
    """Resampled by ITK, on a grid worked out here: as many voxels as fit, about the same centre."""
    image = array.astype(np.float32 if array.dtype == bool else array.dtype).lp.to_sitk()
    old_size, old = np.array(image.GetSize()), np.array(image.GetSpacing())
    new = np.broadcast_to(spacing, 3)[::-1].astype(float)
    size = np.maximum(1, np.floor(old_size * old / new + 1e-6)).astype(int)
    middle = image.TransformContinuousIndexToPhysicalPoint(((old_size - 1) / 2).tolist())
    direction = np.array(image.GetDirection()).reshape(3, 3)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(size.tolist())
    resampler.SetOutputSpacing(new.tolist())
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetOutputOrigin((middle - direction @ ((size - 1) / 2 * new)).tolist())
    resampler.SetInterpolator(method)
    resampler.SetDefaultPixelValue(-12345.0)
    return sitk.GetArrayFromImage(resampler.Execute(image))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_linear_is_simpleitk_s(either: xr.Dataset, spacing: object) -> None:
    array = with_place(either.dose, either)
    expected = by_simpleitk(array, spacing, sitk.sitkLinear)
    assert (expected != -12345.0).all(), "ITK had to go outside"
    found = array.lp.resample(spacing)
    np.testing.assert_allclose(found.values, expected, atol=2e-5)
    np.testing.assert_allclose(found.lp.spacing_mm, np.broadcast_to(spacing, 3))


@pytest.mark.parametrize("spacing", [(2.2, 0.52, 0.83), (4.1, 1.7, 2.9)])  # nowhere half-way
def test_nearest_is_simpleitk_s(either: xr.Dataset, spacing: object) -> None:
    array = with_place(either.dose, either)
    expected = by_simpleitk(array, spacing, sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(array.lp.resample(spacing, order=0).values, expected)


def test_cubic_is_simpleitk_s_inside(aligned: xr.Dataset) -> None:
    big = volume(aligned_affine(), (20, 21, 22)).dose
    inside = (slice(6, -6),) * 3  # boundary conditions of the spline differ
    expected = by_simpleitk(big, 1.1, sitk.sitkBSpline3)[inside]
    found = big.lp.resample(1.1, order=3).values[inside]
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.abs(found - big.lp.resample(1.1).values[inside]).max() > 0.2


def test_mask_is_where_half_or_more_of_its_interpolation_is(either: xr.Dataset) -> None:
    mask = with_place(either.mask.sel(structure="CTVT_427"), either)
    found = mask.lp.resample((2.0, 0.5, 0.8))
    assert found.dtype == bool
    expected = by_simpleitk(mask, (2.0, 0.5, 0.8), sitk.sitkLinear)
    clear = np.abs(expected - 0.5) > 1e-4
    np.testing.assert_array_equal(found.values[clear], expected[clear] > 0.5)
    assert clear.mean() > 0.9


def test_a_mask_halved_in_resolution_is_not_shifted(aligned: xr.Dataset) -> None:
    box = np.zeros((8, 8, 8), bool)
    box[2:6, 2:6, 2:6] = True
    data = volume(aligned_affine(), (8, 8, 8)).assign(mask=(("z", "y", "x"), box))
    coarse = data.mask.lp.resample(data.lp.spacing_mm * 2)
    expected = np.zeros((4, 4, 4), bool)
    expected[1:3, 1:3, 1:3] = True
    np.testing.assert_array_equal(coarse.values, expected)
    # one voxel off, every coarse voxel at its edge is half full, and half counts as full
    off = data.assign(mask=(("z", "y", "x"), np.roll(box, 1, axis=0))).mask
    assert off.lp.resample(data.lp.spacing_mm * 2).sum() == 3 * 2 * 2


def test_own_spacing_changes_nothing(either: xr.Dataset) -> None:
    same = either.lp.resample(either.lp.spacing_mm)
    np.testing.assert_array_equal(same.dose.values, either.dose.values)
    np.testing.assert_array_equal(same.mask.values, either.mask.values)
    np.testing.assert_array_equal(same.lp.affine, either.lp.affine)


def test_linear_function_of_place_is_kept_inside() -> None:
    data = volume(aligned_affine())
    exact = (2 * data.z - 3 * data.y + data.x).astype(np.float64).assign_attrs(data.attrs)
    fine = exact.lp.resample((1.0, 0.3, 0.4))
    expected = 2 * fine.z - 3 * fine.y + fine.x
    inside = {d: slice(*sorted((float(data[d][0]), float(data[d][-1])))) for d in "zx"}
    inside["y"] = slice(float(data.y[0]), float(data.y[-1]))
    np.testing.assert_allclose(
        fine.sel(inside).transpose("z", "y", "x"),
        expected.sel(inside).transpose("z", "y", "x"),
        atol=1e-9,
    )
    assert 0 < fine.sel(inside).size < fine.size


def test_edge_voxels_carry_on_to_the_volumes_edge_and_no_further(aligned: xr.Dataset) -> None:
    fine = aligned.dose.lp.resample((0.5, 0.75, 1.25))
    np.testing.assert_array_equal(fine.values[0], aligned.dose.values[0])
    low, high = float(fine.z[0] - 0.25), float(fine.z[-1] + 0.25)
    edges = float(aligned.z[0]) - 1.5, float(aligned.z[-1]) + 1.5
    np.testing.assert_allclose((low, high), edges)


def test_resampling_like_another_grid(either: xr.Dataset) -> None:
    middle = either.lp.affine @ [*(np.array([9, 7, 6]) / 2 - 0.5), 1]
    affine = np.diag([-0.9, -0.8, 2.0, 1.0])
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ [2, 2, 2]
    other = volume(affine, (5, 5, 5))
    array = with_place(either.dose, either)
    image, target = array.lp.to_sitk(), other.dose.lp.to_sitk()
    expected = sitk.GetArrayFromImage(
        sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear)
    )
    found = array.lp.resample_like(other, fill=0)
    np.testing.assert_allclose(found.values, expected, atol=2e-5)
    np.testing.assert_array_equal(found.lp.affine, other.lp.affine)
    for dim in "zyx":
        np.testing.assert_array_equal(found[dim], other[dim])


def test_outside_is_an_error_or_the_fill(aligned: xr.Dataset) -> None:
    other = volume(aligned_affine(), (9, 7, 9))  # three slices more
    with pytest.raises(UsageError, match=r"beyond the volume, \(6, 7, 9\) voxels.*`fill=`"):
        aligned.lp.resample_like(other)
    found = aligned.lp.resample_like(other, fill=np.nan)
    assert found.dose.isnull().any(("y", "x")).values.tolist() == [False] * 6 + [True] * 3
    assert found.dose.isnull().sum() == 3 * 7 * 9
    assert not found.mask.isel(z=slice(6, None)).any()
    np.testing.assert_array_equal(found.dose[:6], aligned.dose)


def test_outside_of_an_oblique_grid(oblique: xr.Dataset) -> None:
    affine = np.diag([-3.0, -3.0, 5.0, 1.0])
    affine[:3, 3] = oblique.lp.affine[:3, 3] + [5, 5, -5]
    array, other = with_place(oblique.dose + 100, oblique), volume(affine, (8, 8, 8))
    target = other.dose.lp.to_sitk()
    expected = sitk.GetArrayFromImage(
        sitk.Resample(array.lp.to_sitk(), target, sitk.Transform(), sitk.sitkLinear, -1.0)
    )
    found = array.lp.resample_like(other, fill=-1.0).values
    assert 10 < (expected == -1).sum() < expected.size - 10
    np.testing.assert_array_equal(found == -1, expected == -1)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("order", "dtype", "fill", "expected"),
    [
        (0, np.int16, None, np.int16),
        (0, np.int16, -1000, np.int16),
        (0, np.int16, np.nan, np.float32),
        (0, np.int16, 40000, np.float32),
        (0, np.int16, 0.5, np.float32),
        (1, np.int16, -1000, np.float32),
        (1, np.float32, None, np.float32),
        (1, np.float64, None, np.float64),
        (0, bool, np.nan, bool),
        (1, bool, np.nan, bool),
    ],
)
def test_types(aligned: xr.Dataset, order: int, dtype: type, fill: float, expected: type) -> None:
    other = volume(aligned_affine(), (6 if fill is None else 7, 7, 9))
    array = aligned.dose.astype(dtype)
    found = array.lp.resample_like(other, order=order, fill=fill)
    assert found.dtype == expected == found.compute().dtype
    if fill is not None:
        wanted = False if dtype is bool else fill
        np.testing.assert_array_equal(found.values[6], np.full((7, 9), wanted, expected))


def test_a_resampled_store_keeps_labels_and_tells_its_own_place(extended: lp.Patient) -> None:
    data = xr.merge([extended.mri, extended.clinical], combine_attrs="override").lp.resample(9.0)
    assert data.modality.values.tolist() == ["T2w", "sCT"]
    assert data.unit.values.tolist() == ["1", "HU"]
    assert data.image.dims == ("modality", "z", "y", "x")
    assert "units" not in data.image.attrs
    assert "sources" not in data.image.attrs
    xr.testing.assert_identical(data.fiducial_position, extended.clinical.fiducial_position)
    for part in (data, data.image, data.mask):
        np.testing.assert_allclose(part.isel(z=[2]).lp.spacing_mm, 9.0)
    assert "sources" in extended.mri.image.attrs, "the original is as it was"


def test_lazy_and_eager_agree_and_blocks_change_nothing(extended: lp.Patient) -> None:
    lazy = extended.mri.image.lp.resample((7.0, 5.0, 4.0))
    eager = extended.mri.image.compute().lp.resample((7.0, 5.0, 4.0))
    xr.testing.assert_identical(lazy.compute(), eager)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_a_part_is_resampled_as_the_whole_is(order: int) -> None:
    """Only the voxels about the part are read: for splines, those far off count for nothing."""
    big = volume(aligned_affine(), (70, 7, 9))
    part = big.isel(z=slice(30, 36))
    whole = big.dose.lp.resample_like(big, order=order).values[30:36]
    found = big.dose.lp.resample_like(part, order=order)
    np.testing.assert_allclose(found.values, whole, atol=1e-4)
    shifted = part.assign_coords(z=part.z + 1.0)
    reference = big.dose.lp.resample_like(
        big.assign_coords(z=big.z + 1.0), order=order, fill=0
    ).values[30:36]
    found = big.dose.lp.resample_like(shifted, order=order)
    np.testing.assert_allclose(found.values, reference, atol=1e-4)


@pytest.mark.parametrize("spacing", [0, -1.0, float("nan"), (1, 0, 1)])
def test_spacing_that_makes_no_sense(aligned: xr.Dataset, spacing: object) -> None:
    with pytest.raises(UsageError, match="expected positive millimetres"):
        aligned.lp.resample(spacing)


def test_a_grid_beyond_any_memory_is_refused_at_once(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match=r"\de\+\d+ in all or .*bytes.*at most 2\*\*31 voxels"):
        aligned.dose.lp.resample(1e-4)


@pytest.mark.parametrize("order", [-1, 6, 1.5])
def test_order_that_makes_no_sense(aligned: xr.Dataset, order: float) -> None:
    with pytest.raises(UsageError, match="order is"):
        aligned.lp.resample(1.0, order=order)


def test_a_slice_has_to_stay_an_axis(aligned: xr.Dataset) -> None:
    dose = with_place(aligned.dose, aligned)
    with pytest.raises(UsageError, match=r"isel\(z=\[3\]\)"):
        dose.isel(z=3).lp.resample(1.0)
    assert dose.isel(z=[3]).lp.resample((3, 1, 1)).sizes["z"] == 1
