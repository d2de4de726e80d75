"""Where patches lie: inside, around what they should be around, covering what they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.patches.order import Words, key_of
from lundprobe_zarr.patches.sampling import (
    BalancedSampling,
    CentredSampling,
    GridSampling,
    SliceSampling,
    Space,
    UniformSampling,
    sampling_of,
)

LENGTHS = st.tuples(*[st.integers(1, 40)] * 3)


def inside(space: Space, start) -> bool:
    """Within the volume, or the volume within the patch."""
    return all(
        0 <= a <= n - s if s <= n else a <= 0 and a + s >= n
        for a, n, s in zip(start, space.shape, space.size, strict=True)
    )


@given(LENGTHS, LENGTHS, st.integers(0, 2**64 - 1))
def test_uniform_patches_lie_inside(shape, size, key):
    space = Space(shape, size)
    assert inside(space, UniformSampling().start(space, 0, Words(key)))


@given(LENGTHS, LENGTHS, st.tuples(*[st.floats(-60, 60)] * 3))
def test_patches_around_a_place_lie_inside_and_hold_it(shape, size, place):
    space = Space(shape, size)
    start = space.around(place)
    assert inside(space, start)
    for a, s, n, c in zip(start, size, shape, place, strict=True):
        if -0.5 <= c < n - 0.5:
            assert a - 0.5 - 1e-5 <= c < a + s - 0.5 + 1e-5


def test_the_centre_is_nearest_to_the_place_asked_for():
    """The centre of an even size is between two voxels; of equally near ones the lower counts."""
    space = Space((50, 50, 50), (4, 5, 1))
    assert space.around((20, 20, 20)) == (18, 18, 20)
    assert space.around((20 + 1e-9, 20 - 1e-9, 20)) == (18, 18, 20), "rounding changes nothing"
    assert space.around((20.4, 19.6, 19.6)) == (19, 18, 20)


@given(LENGTHS, st.tuples(*[st.floats(15, 25)] * 3))
def test_no_centre_is_more_than_half_a_voxel_off(size, place):
    size = tuple(min(s, 20) for s in size)
    start = Space((60, 60, 60), size).around(place)
    for a, s, c in zip(start, size, place, strict=True):
        assert abs(a + (s - 1) / 2 - c) <= 0.5 + 1e-5 or a == 0


def test_slices_smaller_than_the_volume_are_in_its_middle():
    starts = SliceSampling().start(Space((5, 20, 21), (1, 7, 6)), 3, Words(0))
    assert starts[0] == 3
    assert abs(starts[1] + 3 - 9.5) <= 0.5
    assert abs(starts[2] + 2.5 - 10) <= 0.5


def test_uniform_patches_lie_everywhere_alike():
    """Each of 9 places along an axis has a ninth of the draws: chi-squared, 8 degrees."""
    space, starts = Space((12, 4, 1), (4, 4, 1)), []
    for draw in range(4500):
        starts.append(UniformSampling().start(space, draw, Words(key_of("test", draw)))[0])
    counts = np.bincount(starts, minlength=9)
    assert ((counts - 500) ** 2 / 500).sum() < 26.1  # p = 0.001


def test_balanced_patches_are_around_each_structure_alike():
    points = {
        "CTVT_427": np.array([[10.0, 10, 10]]),
        "Rectum": np.array([[30.0, 30, 30], [31, 30, 30]]),
    }
    space = Space((64, 64, 64), (9, 9, 9), foreground=points)
    sampling = BalancedSampling(("CTVT_427", "PenileBulb", "Rectum"), foreground=0.6)
    starts = [sampling.start(space, n, Words(key_of("t", n))) for n in range(3000)]
    ctv = sum(s == (6, 6, 6) for s in starts)
    rectum = sum(s in ((26, 26, 26), (27, 26, 26)) for s in starts)
    five_sigma = 5 * np.sqrt(3000 * 0.3 * 0.7)
    assert abs(ctv - 900) < five_sigma
    assert abs(rectum - 900) < five_sigma


@pytest.mark.parametrize("foreground", [0, 1])
def test_the_foreground_share_may_be_none_or_all(foreground):
    space = Space((64,) * 3, (9,) * 3, foreground={"Rectum": np.array([[30.0, 30, 30]])})
    sampling = BalancedSampling(("Rectum",), foreground)
    starts = {sampling.start(space, n, Words(key_of("t", n))) for n in range(50)}
    assert (starts == {(26, 26, 26)}) is bool(foreground)


@given(LENGTHS, LENGTHS, st.data())
def test_a_grid_covers_everything_and_repeats_no_patch(shape, size, data):
    overlap = tuple(data.draw(st.integers(0, s - 1)) for s in size)
    space, sampling = Space(shape, size), GridSampling(overlap)
    starts = sampling.starts(space)
    assert len(set(starts)) == len(starts) == sampling.draws(space)
    assert [sampling.start(space, n, Words(0)) for n in range(len(starts))] == starts
    for axis, (n, s, o) in enumerate(zip(shape, size, overlap, strict=True)):
        firsts = sorted({start[axis] for start in starts})
        assert firsts[0] <= 0
        assert firsts[-1] + s >= n
        assert all(b - a <= s - o for a, b in pairwise(firsts))
    assert all(inside(space, start) for start in starts)


def test_slices_are_taken_once_each():
    space = Space((7, 20, 30), (1, 20, 30))
    starts = [SliceSampling().start(space, n, Words(0)) for n in range(7)]
    assert SliceSampling().draws(space) == 7
    assert starts == [(z, 0, 0) for z in range(7)]
    chosen = Space((7, 20, 30), (1, 10, 10), slices=np.array([2, 5]))
    assert SliceSampling().draws(chosen) == 2
    assert SliceSampling().start(chosen, 1, Words(0)) == (5, 5, 10)


def test_jitter_is_in_millimetres_and_bounded():
    space = Space((200, 200, 200), (10, 10, 10), (2.5, 0.5, 0.5), centroid=np.array([90.0, 90, 90]))
    assert CentredSampling().start(space, 0, Words(0)) == (85, 85, 85)
    sampling = CentredSampling("CTVT_427", jitter_mm=10)
    starts = np.array([sampling.start(space, n, Words(key_of("t", n))) for n in range(500)])
    moved = np.abs(starts - 85).max(axis=0)
    assert moved.tolist() == [4, 20, 20]
    assert CentredSampling().draws(Space((9, 9, 9), (3, 3, 3))) == 0


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: sampling_of("unifrom"), UsageError, "uniform, balanced"),
        (lambda: BalancedSampling(("Bladderr",)), UnknownLabelError, "Bladder"),
        (lambda: BalancedSampling(()), UsageError, "no structures"),
        (lambda: BalancedSampling(("Rectum",), 1.5), UsageError, "foreground=1.5"),
        (lambda: UniformSampling(0), UsageError, "per_patient=0"),
        (lambda: CentredSampling(jitter_mm=-1), UsageError, "jitter_mm=-1"),
        (lambda: SliceSampling("rectum"), UnknownLabelError, "Rectum"),
        (lambda: GridSampling(4).starts(Space((9,) * 3, (4, 8, 8))), UsageError, "overlap 4"),
    ],
)
def test_what_makes_no_sense_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()
