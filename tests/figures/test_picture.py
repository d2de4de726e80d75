"""Pictures of planes: the right way up, with square pixels, in the window."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lundprobe_zarr.figures.picture import as_grey, picture
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.geometry.plane import plane_of

#: Voxels of 1 x 1 x 3 mm; the grid of a file that ITK wrote, and one that is stored the other way.
GRID = Grid(np.diag([-1.0, -1.0, 3.0, 1.0]), (4, 5, 6))
TURNED = Grid(np.diag([1.0, 1.0, -3.0, 1.0]), (4, 5, 6))


@pytest.mark.parametrize("grid", [GRID, TURNED])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_first_pixel_is_right_anterior_or_superior(grid, axis):
    shape = [n for a, n in enumerate(grid.shape) if a != axis]
    values = np.arange(np.prod(shape)).reshape(shape)
    drawn = picture(values, plane_of(grid, axis, 1), 0, values.max())
    right_back_down = drawn.plane.row_mm * [1, 1, -1] + drawn.plane.column_mm * [1, 1, -1]
    assert (right_back_down >= 0).all()
    # The picture's pixel is the voxel at the same place.
    rows, columns = (1 if axis == 0 else 3), 1
    assert drawn.pixels.shape == (shape[0] * rows, shape[1] * columns)
    plane = plane_of(grid, axis, 1)
    places = np.stack(np.indices(drawn.pixels.shape), -1).reshape(-1, 2)
    points = drawn.plane.points(places)
    steps = np.stack([plane.row_mm, plane.column_mm])
    near = (points - plane.origin_mm) @ steps.T / (steps**2).sum(axis=1)
    near = np.floor(near + 0.5).astype(int)
    expected = as_grey(values, 0, values.max())[near[:, 0], near[:, 1]]
    np.testing.assert_array_equal(drawn.pixels.ravel(), expected)


def test_grey_values_are_cut_off_at_the_window():
    values = np.array([[-5.0, 0.0, 5.0, 10.0, 99.0, np.nan, np.inf]])
    assert as_grey(values, 0, 10).tolist() == [[0, 0, 128, 255, 255, 0, 255]]


def test_both_forms_can_be_read():
    values = np.arange(20).reshape(4, 5)
    drawn = picture(values, plane_of(GRID, 0, 1), 0, 19)
    png = Image.open(io.BytesIO(drawn.encoded("png")))
    np.testing.assert_array_equal(np.asarray(png), drawn.pixels)
    webp = Image.open(io.BytesIO(drawn.encoded("webp")))
    assert webp.size == png.size
