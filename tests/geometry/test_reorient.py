"""Arrays turned to a grid: exact for the same lattice in any order of axes, else refused."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.geometry.reorient import turned

_TILT = 0.2
_AFFINES = {
    "aligned": np.array([[-0.5, 0, 0, 9], [0, -0.7, 0, 8], [0, 0, 2.5, -7], [0, 0, 0, 1.0]]),
    "oblique": np.array(
        [
            [-0.5 * np.cos(_TILT), 0.7 * np.sin(_TILT), 0, 9],
            [-0.5 * np.sin(_TILT), -0.7 * np.cos(_TILT), 0, 8],
            [0, 0, 2.5, -7],
            [0, 0, 0, 1],
        ]
    ),
}
_SHAPE = (3, 4, 5)
_ORDERS = list(product(permutations(range(3)), product((False, True), repeat=3)))


def _reordered(values, affine, axes, flips):
    """The same voxels (i, j, k) as another program may write them, with their affine."""
    move = np.zeros((4, 4))
    move[3, 3] = 1
    out = values.transpose(axes)
    for axis, (of, flip) in enumerate(zip(axes, flips, strict=True)):
        move[of, axis] = -1 if flip else 1
        move[of, 3] += out.shape[axis] - 1 if flip else 0
        out = np.flip(out, axis) if flip else out
    return out, affine @ move


@pytest.mark.parametrize("affine", _AFFINES.values(), ids=_AFFINES)
@pytest.mark.parametrize(("axes", "flips"), _ORDERS)
def test_every_order_of_axes_of_the_same_lattice_gives_the_same_array(affine, axes, flips):
    values = np.arange(60).reshape(_SHAPE)
    found = turned(*_reordered(values.transpose(), affine, axes, flips), Grid(affine, _SHAPE))
    np.testing.assert_array_equal(found, values)


def test_rounding_of_headers_is_tolerated_and_a_moved_lattice_refused():
    affine = _AFFINES["oblique"]
    grid, values = Grid(affine, _SHAPE), np.zeros(_SHAPE[::-1])
    assert turned(values, affine.astype(np.float32), grid) is not None
    for shift in ([0, 0, 0.002], [0.5, 0, 0], [0, 0, 2.5]):
        moved = affine.copy()
        moved[:3, 3] += shift
        assert turned(values, moved, grid) is None


@pytest.mark.parametrize("shape", [(5, 4, 2), (5, 4, 4), (4, 5, 3)])
def test_another_number_of_voxels_is_refused(shape):
    affine = _AFFINES["aligned"]
    assert turned(np.zeros(shape), affine, Grid(affine, _SHAPE)) is None


def test_other_spacings_angles_and_degenerate_affines_are_refused():
    affine = _AFFINES["aligned"]
    grid = Grid(affine, _SHAPE)
    values = np.zeros(_SHAPE[::-1])
    assert turned(values, affine @ np.diag([1.02, 1, 1, 1]), grid) is None
    assert turned(values, affine @ np.diag([2, 1, 1, 1]), grid) is None
    assert turned(values, _AFFINES["oblique"], grid) is None
    assert turned(values, np.diag([0.0, 0, 0, 1]), grid) is None
    assert turned(values[..., None], affine, grid) is None
