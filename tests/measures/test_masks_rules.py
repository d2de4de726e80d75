"""Masks by hand: their box, their hash, their border, and what lies in them."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.measures.masks import (
    Outline,
    bounding_box,
    mask_sha256,
    points_inside,
)

MASKS = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))
FEW = settings(max_examples=60, deadline=None)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]])


@FEW
@given(MASKS)
def test_a_box_is_the_smallest_that_holds_every_voxel(mask: np.ndarray) -> None:
    box = bounding_box(mask)
    if not mask.any():
        assert box is None
        return
    places = np.argwhere(mask)
    expected = zip(places.min(axis=0), places.max(axis=0) + 1, strict=True)
    assert box == tuple(slice(int(a), int(b)) for a, b in expected)


def test_a_box_has_its_length_along_each_axis() -> None:
    mask = np.zeros((6, 7, 8), bool)
    mask[1, 2, 3] = mask[4, 4, 6] = mask[2, 5, 4] = True
    assert bounding_box(mask) == (slice(1, 5), slice(2, 6), slice(3, 7))


def test_a_hash_is_of_shape_box_and_packed_slices() -> None:
    mask = np.zeros((4, 5, 6), bool)
    empty = hashlib.sha256(np.array([4, 5, 6, 0, 0, 0, 0, 0, 0], "<i8").tobytes())
    assert mask_sha256(mask, None) == empty.hexdigest()
    mask[1, 1, 1] = mask[2, 3, 4] = True
    expected = hashlib.sha256(np.array([4, 5, 6, 1, 1, 1, 3, 4, 5], "<i8").tobytes())
    for plane in mask[1:3, 1:4, 1:5]:
        expected.update(np.packbits(plane).tobytes())
    assert mask_sha256(mask, bounding_box(mask)) == expected.hexdigest()


@FEW
@given(MASKS)
def test_a_border_shares_a_face_with_the_outside(mask: np.ndarray) -> None:
    box = bounding_box(mask)
    if box is None:
        return
    inner = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))
    outline = Outline.of(mask, box)
    assert outline.border().tolist() == np.argwhere(mask & ~inner).tolist()
    everywhere = np.argwhere(np.ones(np.add(mask.shape, 2), bool)) - 1  # around the grid too
    padded = np.pad(mask, 1)
    assert outline.holds(everywhere).tolist() == padded.reshape(-1).tolist()


def test_an_outline_is_a_copy_that_does_not_change() -> None:
    mask = np.ones((2, 2, 2), bool)
    outline = Outline.of(mask, (slice(0, 2),) * 3)
    mask[:] = False
    assert outline.beyond(mask) == 8
    with pytest.raises(FrozenInstanceError):
        outline.part = mask  # type: ignore[misc]


@FEW
@given(MASKS)
def test_a_point_is_in_the_voxel_of_the_nearest_centre(mask: np.ndarray) -> None:
    around = np.argwhere(np.ones(np.add(mask.shape, 2), bool)) - 1
    points = index_to_lps(AFFINE, around)[:, ::-1]  # x, y, z
    assert points_inside(mask, AFFINE, points) == mask.sum()
    assert points_inside(mask, AFFINE, np.add(points, [0.9, 1.4, -2.4])) == mask.sum()
