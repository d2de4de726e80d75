"""Planes of a grid: places in mm, the nearest voxel, the nearest plane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.geometry.plane import axis_number, nearest_plane, nearest_voxel, plane_of

STRAIGHT = np.array([[-0.5, 0, 0, 20], [0, -0.5, 0, 30], [0, 0, 2.5, -50], [0, 0, 0, 1.0]])


def turned() -> np.ndarray:
    affine = STRAIGHT.copy()
    affine[:3] = Rotation.from_euler("xyz", [0.3, -0.2, 0.1]).as_matrix() @ affine[:3]
    return affine


@pytest.fixture(params=["straight", "turned"])
def grid(request) -> Grid:
    return Grid(STRAIGHT if request.param == "straight" else turned(), (6, 7, 8))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_are_those_of_the_affine(grid, axis):
    plane = plane_of(grid, axis, 3, (1, 2), 2)
    for row, column in ((0, 0), (1, 2), (0.5, 1)):
        voxel = [1 + 2 * row, 2 + 2 * column]
        voxel.insert(axis, 3)
        expected = index_to_lps(grid.affine, voxel)[::-1]
        np.testing.assert_allclose(plane.points([[row, column]])[0], expected, atol=1e-9)


def test_a_voxel_reaches_half_way_to_its_neighbours(grid):
    def at(*zyx):
        return nearest_voxel(grid, index_to_lps(grid.affine, zyx)[::-1])

    assert at(0, 0, 0) == (0, 0, 0)
    assert at(2.49, 3.49, 4.49) == (2, 3, 4)
    assert at(2.51, 3.51, 4.51) == (3, 4, 5)
    assert at(-0.49, 0, 7.49) == (0, 0, 7)
    assert at(-0.51, 0, 0) is None
    assert at(0, 0, 7.51) is None
    assert nearest_voxel(grid, [1e300, 0, 0]) is None


def test_the_nearest_plane_to_a_point(grid):
    point = index_to_lps(grid.affine, (2.4, 3.6, 5.2))[::-1]
    assert [nearest_plane(grid, axis, point.tolist()) for axis in range(3)] == [2, 4, 5]
    outside = index_to_lps(grid.affine, (6, 3, 3))[::-1]
    assert nearest_plane(grid, 1, outside.tolist()) == 3
    with pytest.raises(UsageError, match="within its 6 planes"):
        nearest_plane(grid, 0, outside.tolist())


def test_one_coordinate_is_enough_on_a_straight_grid_alone():
    straight = Grid(STRAIGHT, (6, 7, 8))
    assert nearest_plane(straight, 0, [-46.0]) == 2
    assert nearest_plane(straight, 2, [-18.9]) == 2
    with pytest.raises(UsageError, match=r"expected -51\.25 to -36\.25 mm"):
        nearest_plane(straight, 0, [-52])
    with pytest.raises(UsageError, match="oblique"):
        nearest_plane(Grid(turned(), (6, 7, 8)), 0, [-46.0])
    with pytest.raises(UsageError, match="2 numbers"):
        nearest_plane(straight, 0, [1, 2])


def test_an_unknown_axis_is_named():
    assert [axis_number(a) for a in "zyx"] == [0, 1, 2]
    with pytest.raises(UsageError, match="'axial'"):
        axis_number("axial")
