"""Outlines of masks and lines of equal value: filled again, they are the mask."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path

from lundprobe_zarr.figures.contours import level_lines, mask_polygons


def refilled(polygons, shape, start=(0, 0)) -> np.ndarray:
    """Which voxel centres lie inside an odd number of rings."""
    places = np.stack(np.meshgrid(*(np.arange(n) + s for n, s in zip(shape, start, strict=True)),
                                  indexing="ij"), -1).reshape(-1, 2)  # fmt: skip
    inside = np.zeros(len(places), bool)
    for ring in (r for p in polygons for r in p.rings):
        inside ^= Path(ring).contains_points(places)
    return inside.reshape(shape)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_any_mask_is_its_outline_filled(mask):
    polygons = mask_polygons(mask, (3, -5))
    np.testing.assert_array_equal(refilled(polygons, mask.shape, (3, -5)), mask)


def test_a_hole_belongs_to_the_ring_around_it():
    mask = np.zeros((12, 20), bool)
    mask[1:8, 1:8] = True
    mask[3:6, 3:6] = False
    mask[4, 4] = True
    mask[2:5, 12:15] = True
    assert sorted(len(p.rings) for p in mask_polygons(mask)) == [1, 1, 2]


def test_a_straight_edge_needs_no_places_between():
    mask = np.ones((30, 40), bool)
    (polygon,) = mask_polygons(mask)
    # The four corners are cut off: eight places, and the first again.
    assert len(polygon.rings[0]) == 9
    assert polygon.rings[0].min() == -0.5
    assert polygon.rings[0].max() == 39.5


@given(st.floats(0.5, 8.5))
def test_a_level_lies_where_interpolation_has_it(level):
    values = np.add.outer(np.arange(10.0), np.zeros(6)).astype(np.float32)
    (line,) = level_lines(values, level, (2, 3))
    np.testing.assert_allclose(line[:, 0], level + 2)
    assert line[:, 1].min() == 3
    assert line[:, 1].max() == 8


def test_values_that_are_no_numbers_end_a_line():
    values = np.add.outer(np.zeros(9), np.arange(5.0))
    assert len(level_lines(values, 2.5)) == 1
    values[4] = np.nan
    assert len(level_lines(values, 2.5)) == 2


def test_a_level_that_is_nowhere_has_no_line():
    values = np.ones((4, 4))
    assert level_lines(values, 2) == []
    assert level_lines(values, 1) == []
    assert level_lines(values[:1], 0.5) == []
