"""Coarser levels: each voxel is the mean, or the majority, of those it covers, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lundprobe_zarr.geometry.coarser import coarser, coarser_shape

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def by_hand(volume: np.ndarray[Any, Any], level: int) -> np.ndarray[Any, Any]:
    n = 2**level
    found = np.zeros(coarser_shape(volume.shape, level), volume.dtype)
    for z, y, x in np.ndindex(found.shape):
        square = volume[z, y * n : (y + 1) * n, x * n : (x + 1) * n]
        if volume.dtype.kind == "b":
            found[z, y, x] = 2 * np.count_nonzero(square) >= square.size
        else:
            mean = square.astype(np.float64).mean()
            found[z, y, x] = round(float(mean)) if volume.dtype.kind in "iu" else mean
    return found


@given(SHAPES.flatmap(lambda s: arrays(np.int16, s)), st.integers(1, 4))
def test_integers_are_means_rounded_half_to_even(volume: Any, level: int) -> None:
    found = coarser(volume, level)
    np.testing.assert_array_equal(found, by_hand(volume, level))
    assert found.dtype == np.int16


@given(SHAPES.flatmap(lambda s: arrays(np.bool_, s)), st.integers(1, 5))
def test_masks_are_majorities_and_a_tie_is_mask(volume: Any, level: int) -> None:
    np.testing.assert_array_equal(coarser(volume, level), by_hand(volume, level))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_means_of_all_voxels_of_level_0(dtype: type) -> None:
    volume = np.random.default_rng(3).normal(0, 1e3, (2, 7, 10)).astype(dtype)
    for level in (1, 2, 3):
        found = coarser(volume, level)
        np.testing.assert_allclose(found, by_hand(volume, level), rtol=1e-6, atol=1e-3)
        assert found.dtype == dtype


def test_nan_stays_unknown_and_infinity_stays() -> None:
    volume = np.ones((1, 2, 6), np.float32)
    volume[0, 0, 0], volume[0, 0, 2], volume[0, 0, 4], volume[0, 1, 4] = (
        np.nan,
        np.inf,
        np.inf,
        -np.inf,
    )
    np.testing.assert_array_equal(coarser(volume, 1)[0, 0], [np.nan, np.inf, np.nan])


def test_halves_are_rounded_to_even_and_full_squares_of_a_mask_stay() -> None:
    assert coarser(np.array([[[0, 1, 1, 2]]], np.int16), 1).tolist() == [[[0, 2]]]
    full = np.ones((1, 64, 64), bool)
    for level in range(1, 7):
        assert coarser(full, level).all()
        assert not coarser(~full, level).any()
