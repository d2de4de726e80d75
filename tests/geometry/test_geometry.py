"""Affine and axes, checked against nibabel and against each other."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lundprobe_zarr.geometry.affine import (
    COSINE_TOLERANCE,
    affine_from_axes,
    axis_coordinates,
    index_to_lps,
    is_aligned,
    largest_shift,
    origin_lps,
    ras_to_lps,
    spacing,
)

SETTINGS = settings(derandomize=True, database=None, deadline=None, max_examples=100)
SIZES = st.floats(0.1, 10)
OFFSETS = st.floats(-1000, 1000)
SHAPES = st.tuples(*[st.integers(2, 40)] * 3)
SIGNS = st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)


@st.composite
def aligned_affines(draw: st.DrawFn) -> np.ndarray:
    affine = np.diag([*np.multiply(draw(SIGNS), [draw(SIZES) for _ in range(3)]), 1.0])
    affine[:3, 3] = [draw(OFFSETS) for _ in range(3)]
    return affine


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any orientation and voxel size, sheared ones left out as nobody has them."""
    turn = Rotation.from_euler("xyz", [draw(st.floats(-3, 3)) for _ in range(3)]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * np.multiply(draw(SIGNS), [draw(SIZES) for _ in range(3)])
    affine[:3, 3] = [draw(OFFSETS) for _ in range(3)]
    return affine


@SETTINGS
@given(aligned_affines(), SHAPES)
def test_axes_and_affine_are_each_others_inverse(
    affine: np.ndarray, shape: tuple[int, ...]
) -> None:
    axes = axis_coordinates(affine, shape)
    assert [len(axes[a]) for a in "zyx"] == list(shape)
    assert all(a.dtype == np.float64 for a in axes.values())
    assert list(axes) == ["z", "y", "x"]
    first = [values[0] for values in axes.values()]
    step = [(values[-1] - values[0]) / (len(values) - 1) for values in axes.values()]
    np.testing.assert_allclose(affine_from_axes(first, step), affine, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(aligned_affines(), SHAPES, st.data())
def test_axes_are_where_nibabel_puts_the_voxels_with_x_and_y_turned(
    affine: np.ndarray, shape: tuple[int, ...], data: st.DataObject
) -> None:
    z, y, x = (data.draw(st.integers(0, n - 1)) for n in shape)
    ras = nib.affines.apply_affine(affine, [x, y, z])
    axes = axis_coordinates(affine, shape)
    here = [axes["x"][x], axes["y"][y], axes["z"][z]]
    np.testing.assert_allclose(here, ras * [-1, -1, 1], rtol=1e-12, atol=1e-9)


@SETTINGS
@given(affines(), st.data())
def test_indices_are_where_nibabel_puts_them_in_any_orientation(
    affine: np.ndarray, data: st.DataObject
) -> None:
    zyx = np.array(data.draw(st.lists(st.tuples(*[st.floats(0, 99)] * 3), min_size=1, max_size=5)))
    ras = nib.affines.apply_affine(affine, zyx[:, ::-1])
    np.testing.assert_allclose(
        index_to_lps(affine, zyx)[:, ::-1], ras * [-1, -1, 1], rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(index_to_lps(affine, [0, 0, 0]), origin_lps(affine))
    np.testing.assert_allclose(spacing(affine), nib.affines.voxel_sizes(affine))
    np.testing.assert_array_equal(ras_to_lps(ras_to_lps(affine)), affine)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product([-1, 1], repeat=3)))
def test_only_unpermuted_axes_have_coordinates(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(np.multiply(signs, [0.5, 0.75, 2.5])))[:, list(order)]
    plain = order == (0, 1, 2)
    assert is_aligned(affine) == plain
    assert bool(axis_coordinates(affine, (3, 4, 5))) == plain


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_direction_cosine_off_by_more_than_the_tolerance_is_oblique(axis: str) -> None:
    def turned(angle: float) -> np.ndarray:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler(axis, angle).as_matrix() * [0.4688, 0.4688, 2.5]
        return affine

    assert is_aligned(turned(0.9 * COSINE_TOLERANCE))
    assert not is_aligned(turned(1.1 * COSINE_TOLERANCE))


@SETTINGS
@given(affines(), affines(), SHAPES)
def test_the_largest_shift_is_that_of_the_worst_voxel(
    a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]
) -> None:
    everywhere = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    apart = nib.affines.apply_affine(a, everywhere) - nib.affines.apply_affine(b, everywhere)
    worst = np.linalg.norm(apart, axis=1).max()
    assert largest_shift(a, b, shape) == pytest.approx(worst)
