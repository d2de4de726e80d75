"""What a file's numbers become: masks of two values, quantities with their range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lundprobe_zarr.conversion.arrays.values import read_mask, read_quantity
from lundprobe_zarr.conversion.source.nifti import NiftiFile
from lundprobe_zarr.errors import PrecisionError, SourceError

SHAPE = (3, 2, 2)


def file(values: Any, dtype: str = "u1", slope: float = 1.0, inter: float = 0.0) -> NiftiFile:
    """A file of these raw numbers, as the reader hands it over."""
    raw = np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype), SHAPE))
    return NiftiFile(
        raw=raw,
        slope=slope,
        inter=inter,
        affine=np.eye(4),
        header=b"",
        extensions=b"",
        trailer=b"",
        dtype=raw.dtype,
        description="SYNTHETIC",
        shape=SHAPE[::-1],
        offset=352,
        bytes=0,
        sha256="",
        nifti_sha256="",
        unit="mm",
        intent="none",
        anomalies=(),
    )


def two(foreground: float, dtype: str) -> np.ndarray:
    """A volume of zeros with three voxels of another value, none of them the first."""
    raw = np.zeros(SHAPE, dtype)
    raw.reshape(-1)[[1, 5, 11]] = foreground
    return raw


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "u4", "f4", "f8"])
@pytest.mark.parametrize("foreground", [1, 7])
def test_a_mask_is_true_where_it_is_not_zero(dtype: str, foreground: int) -> None:
    raw = two(foreground, dtype)
    mask = read_mask(file(raw, dtype), "here")
    assert mask.values.dtype == bool
    np.testing.assert_array_equal(mask.values, raw != 0)
    assert (mask.voxels, mask.foreground) == (3, foreground)
    assert type(mask.foreground) is (float if dtype[0] == "f" else int)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize(("planes", "slices"), [([1, 2], (1, 3)), ([0, 2], (0, 3)), ([1], (1, 2))])
def test_a_mask_knows_the_slices_that_have_voxels(
    dtype: str, planes: list[int], slices: tuple[int, int]
) -> None:
    raw = np.zeros(SHAPE, dtype)
    raw[planes, 1, 1] = 1
    mask = read_mask(file(raw, dtype), "here")
    assert mask.slices == slice(*slices)
    assert mask.voxels == len(planes)
    assert read_mask(file(np.zeros_like(raw), dtype), "here").slices == slice(0, 0)


def test_two_hundred_and_fifty_six_voxels_in_a_slice_are_counted() -> None:
    raw = np.ones((2, 16, 16), "u1")
    raw[1] = 0
    assert read_mask(replace(file(0), raw=raw), "here").voxels == 256


@pytest.mark.parametrize("foreground", [-1, -0.25, 1e-30])
def test_a_foreground_may_be_any_finite_number(foreground: float) -> None:
    mask = read_mask(file(two(foreground, "f8"), "f8"), "here")
    assert (mask.voxels, mask.foreground) == (3, foreground)


@pytest.mark.parametrize(("dtype", "slope"), [("u1", 1.0), ("i2", 1.0), ("f4", 1.0), ("u1", 2.0)])
def test_a_mask_without_any_voxel_has_no_foreground(dtype: str, slope: float) -> None:
    mask = read_mask(file(0, dtype, slope), "here")
    assert (mask.voxels, mask.foreground) == (0, None)
    assert not mask.values.any()


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("value", [1, 2])
def test_a_mask_without_a_zero_is_refused(dtype: str, value: int) -> None:
    with pytest.raises(SourceError, match=rf"^here: holds {value}(\.0)? and no 0; expected a mask"):
        read_mask(file(value, dtype), "here")


def test_a_third_value_is_refused_and_named() -> None:
    raw = two(1, "u1")
    raw[2, 0, 0] = 3
    with pytest.raises(SourceError, match=r"^here: holds 0, 1, 3; expected"):
        read_mask(file(raw), "here")


def test_a_two_among_ones_is_a_third_value() -> None:
    raw = two(1, "u1")
    raw[2, 0, 0] = 2
    with pytest.raises(SourceError, match=r"^here: holds 0, 1, 2; expected"):
        read_mask(file(raw), "here")


def test_masks_and_quantities_are_values() -> None:
    mask = read_mask(file(two(1, "u1")), "here")
    with pytest.raises(AttributeError):
        mask.voxels = 0  # type: ignore[misc]
    quantity = read_quantity(file(1, "i2"), "standard", "image", "T2w", "here")
    with pytest.raises(AttributeError):
        quantity.nonfinite = 1  # type: ignore[misc]


def test_of_many_values_the_first_five_are_named() -> None:
    with pytest.raises(SourceError, match=r"^here: holds 0, 1, 2, 3, 4, 5; expected"):
        read_mask(file(np.arange(12).reshape(SHAPE)), "here")
    with pytest.raises(SourceError, match=r"^here: holds 1, 2, 3, 4, 5 and no 0; expected"):
        read_mask(file(np.arange(1, 13).reshape(SHAPE)), "here")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_foreground_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(SourceError, match=f"holds 0, {value}"):
        read_mask(file(two(value, "f4"), "f4"), "here")


def test_a_negative_zero_is_refused_where_it_could_not_be_written_back() -> None:
    raw = two(1, "f4")
    raw[0, 0, 0] = -0.0
    with pytest.raises(SourceError, match=r"^here: holds 0 and -0\.0"):
        read_mask(file(raw, "f4"), "here")


def test_a_scaled_mask_has_its_physical_foreground() -> None:
    mask = read_mask(file(two(3, "i2"), "i2", slope=0.5), "here")
    assert (mask.voxels, mask.foreground) == (3, 1.5)
    # raw 2 is 0 and raw 4 is 2: what is not zero is mask, whatever the raw number.
    raw = np.full(SHAPE, 2, "i2")
    raw[0, 0, 0] = 4
    mask = read_mask(file(raw, "i2", 1.0, -2.0), "here")
    assert (mask.voxels, mask.foreground) == (1, 2.0)
    floats = read_mask(file(two(3, "f4"), "f4", slope=0.5), "here")
    assert (floats.voxels, floats.foreground) == (3, 1.5)


def test_a_scaling_that_loses_a_masks_numbers_is_refused() -> None:
    """Raw 0 and 1 are both -0.0 and 0 physically: -0.0 does not come back."""
    raw = two(1, "f4")
    raw[2, 1, 0] = -0.0
    with pytest.raises(
        PrecisionError, match=r"^here: scl_slope 2\.0 and scl_inter 0\.0: the stored"
    ):
        read_mask(file(raw, "f4", slope=2.0), "here")


def test_a_scaled_mask_without_voxels_is_checked_too() -> None:
    raw = np.zeros(SHAPE, "f4")
    raw[1, 1, 1] = -0.0
    with pytest.raises(PrecisionError, match=r"^here: scl_slope"):
        read_mask(file(raw, "f4", slope=2.0), "here")
    assert read_mask(file(0, "f4", 2.0), "here").foreground is None


# Quantities


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_an_unscaled_quantity_is_kept_with_its_range(dtype: str) -> None:
    raw = np.arange(12, dtype=dtype).reshape(SHAPE) - 3
    found = read_quantity(file(raw, dtype), "standard", "image", "T2w", "here")
    np.testing.assert_array_equal(found.rounded.values, raw)
    assert (found.range, found.nonfinite, found.restores) == ((-3, 8), 0, True)


def test_what_is_rounded_does_not_restore_the_file() -> None:
    found = read_quantity(file(0.1, "f8"), "standard", "dose", None, "here")
    assert not found.rounded.exact
    assert not found.restores
    assert read_quantity(file(0.1, "f8"), "lossless", "dose", None, "here").restores


def test_a_scaled_quantity_restores_the_file_if_its_numbers_come_back() -> None:
    raw = np.arange(12, dtype="i2").reshape(SHAPE)
    found = read_quantity(file(raw, "i2", 1.1e-3), "standard", "dose", None, "here")
    np.testing.assert_array_equal(found.rounded.values, (raw * 1.1e-3).astype(np.float32))
    assert not found.rounded.exact
    assert found.restores, "although it was rounded"
    raw = np.arange(12, dtype="i4").reshape(SHAPE) + 2**30
    found = read_quantity(file(raw, "i4", 1.1e-3), "standard", "dose", None, "here")
    assert not found.restores


def test_a_scaling_that_loses_whole_numbers_is_refused_by_any_precision() -> None:
    raw = np.arange(12, dtype="i2").reshape(SHAPE)
    for precision in ("lossless", "standard", "compact"):
        with pytest.raises(PrecisionError, match=r"^here: scl_slope 1e-30 and scl_inter 1000\.0"):
            read_quantity(file(raw, "i2", 1e-30, 1000.0), precision, "image", "T2w", "here")


def test_a_scaling_that_loses_floats_is_refused_by_lossless_alone() -> None:
    raw = np.linspace(0, 1, 12, dtype="f8").reshape(SHAPE)
    scaled = file(raw, "f8", 1.0, 1e12)
    with pytest.raises(PrecisionError, match="stored float64 numbers cannot be recovered"):
        read_quantity(scaled, "lossless", "image", "T2w", "here")
    assert not read_quantity(scaled, "standard", "image", "T2w", "here").restores


def test_a_range_is_of_finite_values_and_the_others_are_counted() -> None:
    raw = np.arange(12, dtype="f4").reshape(SHAPE)
    raw[0, 0, 0], raw[2, 1, 1] = np.nan, np.inf
    found = read_quantity(file(raw, "f4"), "standard", "dose", None, "here")
    assert (found.range, found.nonfinite) == ((1, 10), 2)
    raw[0, 0, 0] = 0
    found = read_quantity(file(raw, "f4"), "standard", "dose", None, "here")
    assert (found.range, found.nonfinite) == ((0, 10), 1)
    raw[2, 1, 1] = -np.inf
    found = read_quantity(file(raw, "f4"), "standard", "dose", None, "here")
    assert (found.range, found.nonfinite) == ((0, 10), 1)


def test_a_volume_without_a_finite_value_has_no_range() -> None:
    found = read_quantity(file(np.nan, "f4"), "standard", "dose", None, "here")
    assert (found.range, found.nonfinite) == (None, 12)
