"""Lattices and moves between them, against SciPy, nibabel's affines and arithmetic by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.geometry.common_grid import CommonGrid
from lundprobe_zarr.geometry.lattice import (
    Grid,
    Move,
    resample_volume,
    respaced,
    voxel_sizes,
)

FEW = settings(max_examples=40, deadline=None)
FLOAT = np.dtype(np.float32)
BOOL = np.dtype(bool)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]])
GRID = Grid(AFFINE, (4, 6, 8))


def turned(degrees: float = 20.0) -> Grid:
    """The grid turned about z, so that no axis is one of the patient's."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return Grid(turn @ AFFINE, GRID.shape)


def move(
    old: tuple[int, int, int] = (4, 6, 8),
    new: tuple[int, int, int] = (4, 6, 8),
    step: tuple[float, float, float] = (1, 1, 1),
    offset: tuple[float, float, float] = (0, 0, 0),
) -> Move:
    """A move along the axes: new voxel n is at offset + step · n of the old grid."""
    return Move.between(
        Grid(np.eye(4), old), Grid(np.eye(4), old).stepped(np.array(offset), np.array(step), new)
    )


# Grid


def test_spacing_is_z_y_x() -> None:
    assert GRID.spacing_mm.tolist() == [5, 3, 2]


def test_a_stepped_grid_takes_every_nth_voxel_from_a_start() -> None:
    part = GRID.stepped(np.array([1, 2, 3]), np.array([1, 2, 4]), (2, 2, 1))
    assert part.shape == (2, 2, 1)
    assert index_to_lps(part.affine, [0, 0, 0]).tolist() == index_to_lps(AFFINE, [1, 2, 3]).tolist()
    assert index_to_lps(part.affine, [1, 1, 1]).tolist() == index_to_lps(AFFINE, [2, 4, 7]).tolist()


@FEW
@given(st.lists(st.tuples(*[st.floats(-50, 50)] * 3), min_size=1, max_size=4), st.booleans())
def test_indices_and_places_are_each_others_inverse(zyx: list[Any], is_turned: bool) -> None:
    grid = turned() if is_turned else GRID
    np.testing.assert_allclose(grid.to_index(index_to_lps(grid.affine, zyx)), zyx, atol=1e-9)


# respaced


def edges(grid: Grid) -> np.ndarray:
    """Places (2, 3) half a voxel beyond the first and the last voxel."""
    return index_to_lps(grid.affine, [[-0.5] * 3, np.array(grid.shape) - 0.5])


@FEW
@given(st.tuples(*[st.floats(0.3, 60)] * 3))
def test_respaced_voxels_fill_the_volume_about_its_centre(spacing_mm: tuple[float, ...]) -> None:
    new = respaced(GRID, spacing_mm)
    assert new.spacing_mm.tolist() == pytest.approx(spacing_mm)
    old, now = edges(GRID), edges(new)
    np.testing.assert_allclose(now.mean(axis=0), old.mean(axis=0), atol=1e-9)
    extent, filled = np.abs(old[1] - old[0]), np.abs(now[1] - now[0])
    several = np.array(new.shape) > 1
    assert (filled <= extent + 1e-4)[several].all(), "none lies outside"
    assert (filled + spacing_mm > extent - 1e-4).all(), "one more would not fit"


def test_one_voxel_is_left_where_none_would_fit() -> None:
    assert respaced(GRID, 1000).shape == (1, 1, 1)


def test_the_same_spacing_is_the_same_grid_to_the_last_bit() -> None:
    affine = AFFINE * [0.3, 0.7, 0.9, 1]
    near = Grid(affine, (4, 6, 8)).spacing_mm * (1 + 5e-7)  # float32 in headers
    same = respaced(Grid(affine, (4, 6, 8)), near.tolist())
    assert same.shape == (4, 6, 8)
    assert same.affine.tolist() == affine.tolist()
    other = respaced(Grid(affine, (4, 6, 8)), (near * (1 + 5e-6)).tolist())
    assert other.affine.tolist() != affine.tolist()


def test_a_new_spacing_is_the_one_asked_for_to_the_last_bit() -> None:
    grid = Grid(np.diag([0.1, 0.1, 0.3, 1]), (30, 30, 30))
    assert np.diag(respaced(grid, (0.7, 0.2, 0.3)).affine).tolist() == [0.3, 0.2, 0.7, 1]


@pytest.mark.parametrize("kept", range(3))
def test_an_axis_whose_spacing_stays_is_kept_to_the_last_bit(kept: int) -> None:
    grid = Grid(AFFINE * [0.3, 0.7, 0.9, 1], (4, 6, 8))
    wanted = grid.spacing_mm * [1 if axis == kept else 1.7 for axis in range(3)]
    new = respaced(grid, wanted.tolist())
    assert new.shape[kept] == grid.shape[kept]
    for axis in range(3):
        column, old = new.affine[:3, 2 - axis], grid.affine[:3, 2 - axis]
        assert (column.tolist() == old.tolist()) is (axis == kept)
        assert np.linalg.norm(column) == pytest.approx(wanted[axis])


def test_grids_and_moves_are_values_of_their_own() -> None:
    assert Grid(AFFINE, GRID.shape) != GRID, "arrays have no one answer"
    with pytest.raises(AttributeError):
        GRID.shape = (1, 1, 1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        move().old = (1, 1, 1)  # type: ignore[misc]


def test_as_many_voxels_as_fit_exactly() -> None:
    """10 voxels of 0.3 mm hold 30 of 0.1 mm, although 10 · 0.3 / 0.1 is below 30 in floats."""
    grid = Grid(np.diag([0.3, 0.3, 0.3, 1]), (10, 10, 10))
    assert respaced(grid, 0.1).shape == (30, 30, 30)
    assert respaced(grid, 0.6).shape == (5, 5, 5)
    assert respaced(grid, 0.61).shape == (4, 4, 4)


@pytest.mark.parametrize("size", [2, 2.5, np.float32(2.5), np.uint8(2), [1, 2, 3], (1.5, 2, 3)])
def test_a_size_is_a_number_or_three(size: Any) -> None:
    sizes = voxel_sizes(size)
    assert sizes.tolist() == np.broadcast_to(size, (3,)).tolist()
    assert sizes.dtype == np.float64


@pytest.mark.parametrize(
    "size",
    [
        *(0, -1, np.nan, np.inf, 1e-300, 1e300, (1, 0, 1), (1, 2), [[1, 2, 3]], "1", True),
        *([1, [2]], (1, np.nan, 1)),
    ],
)
def test_what_is_no_size_is_refused_by_name(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^jitter is .*expected positive millimetres"):
        voxel_sizes(size, "jitter")
    with pytest.raises(UsageError, match=r"^spacing_mm is "):
        voxel_sizes(size)


# Move


@FEW
@given(st.tuples(*[st.integers(0, 5)] * 3), st.booleans(), st.floats(0.4, 2), st.floats(-3, 3))
def test_a_move_keeps_every_place(zyx: Any, is_turned: bool, step: float, start: float) -> None:
    new = (turned() if is_turned else GRID).stepped(
        np.array([start, 1, -start]), np.array([step, 1, 2]), (3, 4, 5)
    )
    moved = Move.between(GRID, new)
    here = moved.matrix @ zyx + moved.offset
    np.testing.assert_allclose(
        index_to_lps(GRID.affine, here), index_to_lps(new.affine, zyx), atol=1e-9
    )
    assert (moved.old, moved.new) == (GRID.shape, (3, 4, 5))
    is_diagonal = np.array_equal(moved.matrix, np.diag(np.diag(moved.matrix)))
    assert is_diagonal is not is_turned


def test_a_tilt_counts_once_it_moves_a_voxel() -> None:
    """A millionth of a voxel at the far end of the largest axis is where rounding ends."""
    for tilt, is_tilted in ((1.2e-7, False), (1.25e-7, True), (1.3e-7, True)):
        affine = np.eye(4)
        affine[0, 1] = tilt  # times 8 voxels is 0.96e-6, 1e-6 or 1.04e-6
        moved = Move.between(Grid(np.eye(4), (2, 2, 2)), Grid(affine, (2, 3, 8)))
        assert bool(moved.matrix[2, 1]) is is_tilted
        assert np.count_nonzero(moved.matrix) == 3 + is_tilted


def test_a_volume_ends_half_a_voxel_beyond_its_outermost_centres() -> None:
    one = move(old=(4, 6, 8))
    assert one.low == pytest.approx([-0.5] * 3, abs=2e-6)
    assert one.high == pytest.approx([3.5, 5.5, 7.5], abs=2e-6)
    assert (one.low < -0.5).all(), "and a little more, for rounding"
    assert (one.high > [3.5, 5.5, 7.5]).all()


def test_corners_are_the_first_and_last_voxels() -> None:
    corners = move(new=(2, 3, 4), step=(1, 2, 1), offset=(1, 0, 2)).corners()
    assert sorted(map(tuple, corners.tolist())) == [
        (z, y, x) for z in (1, 2) for y in (0, 4) for x in (2, 5)
    ]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("by", [-0.6, -0.5, -0.4, 0.4, 0.5, 0.6])
def test_what_leaves_the_volume_is_outside_of_it(axis: int, by: float) -> None:
    offset = [0.0] * 3
    offset[axis] = by
    moved = move(offset=(offset[0], offset[1], offset[2]))
    leaves = abs(by) > 0.5
    assert moved.leaves() is leaves
    outside = moved.outside()
    assert outside.any() == leaves
    if leaves:
        at = 0 if by < 0 else GRID.shape[axis] - 1
        expected = np.zeros(GRID.shape, bool)
        expected[tuple(at if a == axis else slice(None) for a in range(3))] = True
        np.testing.assert_array_equal(outside, expected)


def test_what_is_at_the_very_end_is_inside() -> None:
    shape = (2, 3, 4)
    ends = np.array(shape) - 1.0
    moved = Move(np.eye(3), np.zeros(3), shape, shape, np.zeros(3), ends)
    assert not moved.leaves()
    assert not moved.outside().any()


def test_outside_of_a_turned_volume_is_told_voxel_by_voxel() -> None:
    moved = Move.between(GRID, turned())
    places = np.moveaxis(np.indices(GRID.shape), 0, -1) @ moved.matrix.T + moved.offset
    expected = ((places < -0.5) | (places > np.array(GRID.shape) - 0.5)).any(axis=-1)
    np.testing.assert_array_equal(moved.outside(), expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.parametrize(
    ("offset", "margin", "start", "stop"),
    [
        ((1, 1, 1), 0, 1, 4),  # whole places: the last voxel itself, and one for rounding
        ((1.5, 1.5, 1.5), 0, 1, 5),
        ((1.5, 1.5, 1.5), 1, 0, 6),
        ((1.5, 1.5, 1.5), 9, 0, 12),
        ((-5, -5, -5), 0, 0, 1),
        ((20, 20, 20), 0, 11, 12),
        ((9.5, 9.5, 9.5), 0, 9, 12),
    ],
)
def test_a_window_holds_the_voxels_between_which_new_ones_lie(
    offset: tuple[float, float, float], margin: int, start: int, stop: int
) -> None:
    """Three new voxels in a row of twelve old ones."""
    moved = move(old=(12, 12, 12), new=(3, 3, 3), offset=offset)
    box, within = moved.window(margin)
    assert box == (slice(start, stop),) * 3
    assert within.old == (stop - start,) * 3
    assert within.new == (3, 3, 3)
    assert within.offset.tolist() == [o - start for o in offset]
    assert within.low.tolist() == (moved.low - start).tolist()
    assert within.high.tolist() == (moved.high - start).tolist()
    assert within.matrix.tolist() == moved.matrix.tolist()
    assert within.outside().tolist() == moved.outside().tolist()


def test_a_window_has_three_sides_of_their_own() -> None:
    box, within = move(old=(9, 9, 9), new=(2, 3, 4), offset=(1, 2, 3)).window()
    assert box == (slice(1, 3), slice(2, 5), slice(3, 7))
    assert within.old == (2, 3, 4)


# resample_volume


def volume(shape: tuple[int, ...] = (4, 6, 8)) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


def scipys(values: np.ndarray, moved: Move, order: int) -> np.ndarray:
    """The same by SciPy alone, all axes at once, in float64."""
    result: np.ndarray = ndimage.affine_transform(
        values.astype(np.float64),
        moved.matrix,
        moved.offset,
        output_shape=moved.new,
        order=order,
        mode="nearest",
    )
    return result


STEPS = st.tuples(*[st.floats(0.3, 3)] * 3)
STARTS = st.tuples(*[st.floats(-2, 6)] * 3)
NEW = st.tuples(*[st.integers(1, 9)] * 3)


@FEW
@given(STEPS, STARTS, NEW)
def test_linear_along_the_axes_is_scipys(step: Any, offset: Any, new: Any) -> None:
    moved = move(new=new, step=step, offset=offset)
    found = resample_volume(volume(), moved, 1, FLOAT)
    assert (found.dtype, found.shape) == (FLOAT, new)
    np.testing.assert_allclose(found, scipys(volume(), moved, 1), atol=1e-2)


@FEW
@given(STEPS, STARTS, NEW)
def test_a_turned_grid_and_its_nearest_voxels_are_scipys(step: Any, offset: Any, new: Any) -> None:
    tilted = Move.between(GRID, turned().stepped(np.array(offset), np.array(step), new))
    found = resample_volume(volume(), tilted, 1, FLOAT)
    np.testing.assert_allclose(found, scipys(volume(), tilted, 1), atol=1e-2)
    places = [o + s * np.arange(n) for o, s, n in zip(offset, step, new, strict=True)]
    assume(all((np.abs(p % 1 - 0.5) > 1e-9).all() for p in places))  # of two as near, either is
    straight = move(new=new, step=step, offset=offset)
    nearest = resample_volume(volume(), straight, 0, FLOAT)
    np.testing.assert_array_equal(nearest, scipys(volume(), straight, 0).astype(np.float32))


def test_nearest_keeps_integers() -> None:
    labels = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    found = resample_volume(labels, move(step=(1, 1, 1), offset=(1, 0, 2)), 0, np.dtype(np.int16))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found[:3, :, :6], labels[1:, :, 2:])
    np.testing.assert_array_equal(found[3], found[2], "the outermost is carried on")


def test_linear_to_whole_numbers_is_scipys() -> None:
    whole = np.arange(4 * 6 * 8, dtype=np.int32).reshape(4, 6, 8)
    moved = move(offset=(0.5, 0, 0), new=(3, 6, 8))
    found = resample_volume(whole, moved, 1, np.dtype(np.int32))
    np.testing.assert_array_equal(found, whole[:3] + 24)


def test_places_on_centres_take_the_very_value() -> None:
    """Off by less than a millionth of a voxel is rounding; by more it is not."""
    values = volume()
    near = resample_volume(values, move(offset=(5e-7, -5e-7, 5e-7)), 1, FLOAT)
    np.testing.assert_array_equal(near, values)
    for offset in (1e-6, 1e-5):
        moved = move(offset=(offset, 0, 0), new=(1, 6, 8))
        off = resample_volume(values.astype(float), moved, 1, np.dtype(float))
        assert (off[0] != values[0]).all()


@pytest.mark.parametrize(
    ("share", "is_mask"),
    [(0.49, False), (float(np.float32(0.5 - 1e-6)), True), (0.5, True), (0.51, True)],
)
@pytest.mark.parametrize("axis", range(3))
def test_half_a_voxel_of_mask_is_mask(share: float, is_mask: bool, axis: int) -> None:
    """Voxel 1 along one axis is mask; new voxels lie between it and voxel 0."""
    mask = np.zeros((2, 2, 2), bool)
    mask[tuple(1 if a == axis else slice(None) for a in range(3))] = True
    offset = [share if a == axis else 0.0 for a in range(3)]
    moved = move((2, 2, 2), (1, 1, 1), (1, 1, 1), (offset[0], offset[1], offset[2]))
    found = resample_volume(mask, moved, 1, BOOL)
    assert found.dtype == bool
    assert found.tolist() == [[[is_mask]]]


def test_a_mask_on_a_turned_grid_is_half_of_what_is_interpolated() -> None:
    mask = volume() > 0
    moved = Move.between(GRID, turned())
    found = resample_volume(mask, moved, 1, BOOL)
    expected = scipys(mask, moved, 1)
    clear = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal(found[clear], (expected >= 0.5)[clear])
    nearest = resample_volume(mask, moved, 0, BOOL)
    np.testing.assert_array_equal(nearest, scipys(mask, moved, 0) > 0.5)


def test_the_source_is_left_as_it_was() -> None:
    values = volume()
    before = values.copy()
    resample_volume(values, move(offset=(0.25, 0, 0)), 1, FLOAT)
    np.testing.assert_array_equal(values, before)


# CommonGrid


def test_a_common_grid_is_about_its_centre() -> None:
    common = CommonGrid((5, 3, 2), (4, 5, 6))
    axes = {name: axis.tolist() for name, axis in common.axes().items()}
    assert axes == {
        "z": [-7.5, -2.5, 2.5, 7.5],
        "y": [-6, -3, 0, 3, 6],
        "x": [-5, -3, -1, 1, 3, 5],
    }
    grid = common.about((100, 10, 1))
    assert grid.shape == (4, 5, 6)
    assert grid.spacing_mm.tolist() == [5, 3, 2]
    places = index_to_lps(grid.affine, [[0, 0, 0], [1, 1, 1]])
    assert places.tolist() == [[92.5, 4, -4], [97.5, 7, -2]]


def test_a_common_grid_is_a_value() -> None:
    assert CommonGrid(1, (2, 2, 2)).sizes.tolist() == [1, 1, 1]
    assert CommonGrid(1, (2, 2, 2)) == CommonGrid(1, (2, 2, 2), "CTVT_427")
    assert CommonGrid(1, (1, 1, 1)).axes()["z"].tolist() == [0]
    assert CommonGrid(1, np.array([2, 3, 4], np.uint8)).about((0, 0, 0)).shape == (2, 3, 4)
    with pytest.raises(AttributeError):
        CommonGrid(1, (2, 2, 2)).centre = "Rectum"  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (2, 2, -1), (2.0, 2, 2), 4, "abc"])
def test_a_common_grid_of_no_three_counts_is_refused(shape: Any) -> None:
    with pytest.raises(UsageError, match="three voxel counts"):
        CommonGrid(1, shape)


def test_a_common_grid_of_no_size_or_structure_is_refused() -> None:
    with pytest.raises(UsageError, match="spacing_mm"):
        CommonGrid(0, (2, 2, 2))
    with pytest.raises(KeyError, match="Rectum"):
        CommonGrid(1, (2, 2, 2), "rectum")
