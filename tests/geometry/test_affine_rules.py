"""Affines to the last bit, and the tolerances at which a grid is called oblique or moved."""

from __future__ import annotations

import numpy as np
import pytest

from lundprobe_zarr.geometry.affine import (
    COSINE_TOLERANCE,
    LONGEST_AXIS,
    SAME_GRID_MM,
    affine_from_axes,
    axis_coordinates,
    index_to_lps,
    is_aligned,
    largest_shift,
    origin_lps,
    ras_to_lps,
    spacing,
)

#: Voxels of 2, 3 and 5 mm along i, j, k; all three origins differ.
AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]])


def test_limits_are_those_of_the_dataset_layout() -> None:
    assert (COSINE_TOLERANCE, SAME_GRID_MM, LONGEST_AXIS) == (1e-5, 1e-3, 32767)


def test_lps_turns_x_and_y_and_leaves_z() -> None:
    expected = [[2, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]]
    assert ras_to_lps(AFFINE).tolist() == expected


def test_spacing_is_along_i_j_k_and_leaves_the_origin_out() -> None:
    assert spacing(AFFINE).tolist() == [2, 3, 5]
    sheared = AFFINE.copy()
    sheared[0, 1] = 4
    assert spacing(sheared).tolist() == [2, 5, 5], "of columns"


def test_coordinates_are_those_of_every_voxel() -> None:
    axes = axis_coordinates(AFFINE, (2, 3, 4))
    assert {name: axis.tolist() for name, axis in axes.items()} == {
        "z": [30, 35],
        "y": [-20, -17, -14],
        "x": [-10, -8, -6, -4],
    }


def test_a_place_is_the_affine_times_the_index() -> None:
    assert origin_lps(AFFINE).tolist() == [30, -20, -10]
    assert index_to_lps(AFFINE, [[1, 2, 3], [0, 0, 0]]).tolist() == [[35, -14, -4], [30, -20, -10]]


def test_an_affine_is_made_of_first_places_and_steps() -> None:
    assert affine_from_axes([30, -20, -10], [5, 3, 2]).tolist() == AFFINE.tolist()


@pytest.mark.parametrize(("row", "column"), [(r, c) for r in range(3) for c in range(3) if r != c])
def test_a_cosine_may_be_off_by_the_tolerance_itself(row: int, column: int) -> None:
    affine = np.eye(4)
    affine[row, column] = COSINE_TOLERANCE
    # The column's norm is 1 + 5e-11, so its cosine is a little less than the tolerance.
    assert is_aligned(affine)
    affine[row, column] = 1.001 * COSINE_TOLERANCE
    assert not is_aligned(affine)


def test_a_cosine_is_of_an_axis_whatever_its_spacing() -> None:
    affine = np.diag([1.0, 1, 100, 1])
    affine[0, 2] = 50 * COSINE_TOLERANCE  # of 100 mm along k: half the tolerance
    assert is_aligned(affine)
    affine[0, 2], affine[2, 0] = 0, 2 * COSINE_TOLERANCE  # of 1 mm along i
    assert not is_aligned(affine)


def test_a_shift_is_measured_at_the_outermost_voxels() -> None:
    """A spacing off by 0.1 mm along i alone: the fourth voxel has moved by 0.3 mm."""
    wider = AFFINE.copy()
    wider[0, 0] -= 0.1
    assert largest_shift(AFFINE, wider, (4, 3, 2)) == pytest.approx(0.3)
    assert largest_shift(AFFINE, wider, (1, 3, 2)) == 0
    moved = AFFINE.copy()
    moved[:3, 3] += [3, 0, 4]
    assert largest_shift(moved, AFFINE, (4, 3, 2)) == 5
    assert largest_shift(AFFINE, AFFINE, (4, 3, 2)) == 0
