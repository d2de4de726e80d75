"""Sampling, place by place: which words are used for what, and where a patch begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lundprobe_zarr.errors import UsageError
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


def words() -> Words:
    return Words(key_of("rules"))


@pytest.mark.parametrize(
    ("length", "size", "start"),
    [(1, 2, 0), (1, 3, -1), (2, 5, -1), (2, 6, -2), (4, 4, 0), (3, 9, -3)],
)
def test_a_volume_is_in_the_middle_of_a_longer_patch(length: int, size: int, start: int) -> None:
    """Of an odd rest the larger half comes behind."""
    space = Space((length,) * 3, (size,) * 3)
    assert space.uniform(words()) == (start,) * 3
    assert space.around((0, 0, 0)) == (start,) * 3
    assert GridSampling().starts(space) == [(start,) * 3]


def test_a_uniform_patch_takes_one_word_for_each_axis_it_can_move_along() -> None:
    space, used = Space((10, 3, 20), (4, 5, 20)), words()
    again = words()
    expected = (again.below(7), -1, again.below(1))
    assert UniformSampling().start(space, 0, used) == expected
    assert used.next() == again.next()


def test_a_uniform_patch_reaches_the_first_and_the_last_place() -> None:
    space, used = Space((6, 4, 4), (4, 4, 4)), words()
    assert {space.uniform(used) for _ in range(60)} == {(z, 0, 0) for z in range(3)}


@pytest.mark.parametrize(
    ("place", "start"),
    [
        (5, 3),  # between two voxels that are as near: the third of four is the place
        (5 + 9e-7, 3),  # rounding
        (5 + 2e-6, 4),
        (5.5, 4),
        (6, 4),
        (0, 0),
        (2, 0),
        (3, 1),
        (8, 6),
        (9, 6),
        (99, 6),
        (-9, 0),
    ],
)
def test_a_patch_around_a_place_is_moved_back_inside(place: float, start: int) -> None:
    """Patches of four voxels in ten, which hold them up to the sixth."""
    assert Space((10,) * 3, (4,) * 3).around((place,) * 3) == (start,) * 3


def test_axes_are_each_their_own() -> None:
    space = Space((10, 20, 30), (1, 2, 3))
    assert space.around((5, 6, 7)) == (5, 5, 6)


# Kinds


def test_defaults_are_the_documented_ones() -> None:
    assert UniformSampling().per_patient == 8
    balanced = BalancedSampling()
    assert balanced.structures == ("CTVT_427", "Rectum", "Bladder")
    assert (balanced.foreground, balanced.per_patient) == (2 / 3, 8)
    assert GridSampling().overlap == 0
    assert SliceSampling().having is None
    centred = CentredSampling()
    assert (centred.structure, centred.jitter_mm, centred.per_patient) == ("PTVT_427", 0.0, 1)
    space = Space((1, 1, 1), (1, 1, 1))
    assert space.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(AttributeError):
        space.size = (2, 2, 2)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["uniform", "balanced", "grid", "slices", "centred"])
def test_a_kind_is_found_by_its_name(name: str) -> None:
    found = sampling_of(name)
    assert found.name == name
    assert found == type(found)()
    assert sampling_of(found) is found
    assert hash(found) == hash(type(found)())
    with pytest.raises(AttributeError):
        found.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("value", ["Uniform", "", 1, None, UniformSampling])
def test_there_is_no_other_kind(value: Any) -> None:
    with pytest.raises(UsageError, match="expected one of uniform, balanced, grid, slices, centr"):
        sampling_of(value)


@pytest.mark.parametrize("kind", [UniformSampling, BalancedSampling, CentredSampling])
def test_a_number_of_patches_is_whole_and_positive(kind: Any) -> None:
    space = Space((4, 4, 4), (2, 2, 2), centroid=np.zeros(3))
    assert kind(per_patient=1).draws(space) == 1
    assert kind(per_patient=5).draws(space) == 5
    for wrong in (0, -1, 1.0, True, "2", None):
        with pytest.raises(UsageError, match="per_patient="):
            kind(per_patient=wrong)


def test_balanced_words_are_share_structure_voxel() -> None:
    points = {
        "Rectum": np.array([[30.0, 30, 30], [31, 31, 31], [32, 32, 32]]),
        "Bladder": np.zeros((0, 3)),
        "CTVT_427": np.array([[20.0, 20, 20], [21, 21, 21]]),
    }
    space = Space((64, 64, 64), (9, 9, 9), foreground=points)
    sampling = BalancedSampling(("CTVT_427", "Bladder", "PenileBulb", "Rectum"), 0.5)
    seen = set()
    for n in range(200):
        used, again = Words(key_of(n)), Words(key_of(n))
        start = sampling.start(space, n, used)
        if again.unit() >= 0.5:
            assert start == space.uniform(again)
            seen.add(None)
        else:
            name = ("CTVT_427", "Rectum")[again.below(2)]
            assert start == space.around(points[name][again.below(len(points[name]))])
            seen.add(name)
        assert used.next() == again.next()
    assert seen == {None, "CTVT_427", "Rectum"}


class Scripted(Words):
    """Words whose next share is given."""

    def __init__(self, unit: float) -> None:
        super().__init__(0)
        self._unit = unit

    def unit(self) -> float:
        return self._unit


def test_a_share_of_the_foreground_itself_lies_anywhere() -> None:
    """Shares are of [0, 1): a foreground of a half is for those below a half."""
    space = Space((64,) * 3, (9,) * 3, foreground={"Rectum": np.array([[30.0, 30, 30]])})
    sampling = BalancedSampling(("Rectum",), 0.5)
    assert sampling.start(space, 0, Scripted(0.5)) == space.uniform(Words(0))
    assert sampling.start(space, 0, Scripted(np.nextafter(0.5, 0))) == (26, 26, 26)


def test_a_patient_without_the_structures_is_sampled_uniformly() -> None:
    space = Space((64,) * 3, (9,) * 3, foreground={"Bladder": np.array([[30.0, 30, 30]])})
    used, again = words(), words()
    again.unit()
    assert BalancedSampling(("Rectum",), 1).start(space, 0, used) == space.uniform(again)


@pytest.mark.parametrize("share", [0, 1, 0.5])
def test_a_foreground_is_a_share(share: float) -> None:
    assert BalancedSampling(foreground=share).foreground == share
    for wrong in (-0.01, 1.01, float("nan")):
        with pytest.raises(UsageError, match="foreground="):
            BalancedSampling(foreground=wrong)


@pytest.mark.parametrize(
    ("length", "size", "overlap", "starts"),
    [
        (10, 4, 0, [0, 4, 6]),
        (12, 4, 0, [0, 4, 8]),
        (13, 4, 0, [0, 4, 8, 9]),
        (10, 4, 2, [0, 2, 4, 6]),
        (5, 4, 3, [0, 1]),
        (4, 4, 3, [0]),
        (3, 4, 1, [0]),
    ],
)
def test_a_grid_begins_at_zero_and_ends_with_the_volume(
    length: int, size: int, overlap: int, starts: list[int]
) -> None:
    sampling = GridSampling((0, overlap, 0))
    space = Space((1, length, 2), (1, size, 1))
    assert sampling.axes(space) == [[0], starts, [0, 1]]
    assert sampling.starts(space) == [(0, y, x) for y in starts for x in (0, 1)]
    assert sampling.draws(space) == 2 * len(starts)
    for n, start in enumerate(sampling.starts(space)):
        assert sampling.start(space, n, words()) == start


def test_one_overlap_is_for_all_axes() -> None:
    assert GridSampling(3).overlaps == (3, 3, 3)
    assert GridSampling((1, 2, 3)).overlaps == (1, 2, 3)


@pytest.mark.parametrize("overlap", [4, 5, -1, (0, 0, 4), (0, -1, 0)])
def test_an_overlap_is_below_the_size(overlap: Any) -> None:
    with pytest.raises(UsageError, match="overlap"):
        GridSampling(overlap).draws(Space((9, 9, 9), (4, 4, 4)))
    assert GridSampling((0, 0, 3)).draws(Space((4, 4, 4), (4, 4, 4))) == 1


def test_slices_are_taken_in_the_middle() -> None:
    space = Space((7, 21, 30), (3, 10, 11))
    assert [SliceSampling().start(space, n, words()) for n in (0, 3, 6)] == [
        (0, 5, 9),
        (2, 5, 9),
        (4, 5, 9),
    ]
    assert SliceSampling().start(Space((7, 20, 31), (1, 10, 11)), 0, words()) == (0, 5, 10)
    assert SliceSampling().draws(space) == 7
    some = Space((7, 21, 30), (1, 10, 11), slices=np.array([6, 1]))
    assert SliceSampling("Rectum").draws(some) == 2
    assert SliceSampling("Rectum").start(some, 1, words())[0] == 1
    assert SliceSampling().draws(Space((7, 21, 30), (1, 1, 1), slices=np.zeros(0, int))) == 0


def test_a_centred_patch_is_moved_by_up_to_the_jitter_each_way() -> None:
    centroid = np.array([50.0, 60.0, 70.0])
    space = Space((100,) * 3, (10,) * 3, (2.5, 0.5, 1.0), centroid=centroid)
    used, again = words(), words()
    start = CentredSampling(jitter_mm=6).start(space, 0, used)
    moves = [6 * (2 * again.unit() - 1) / mm for mm in (2.5, 0.5, 1.0)]
    assert start == space.around(centroid + moves)
    assert used.next() == again.next()
    for unit, moved in ((0.0, (-4, -20, -10)), (0.5, (0, 0, 0)), (0.75, (2, 10, 5))):
        found = CentredSampling(jitter_mm=10).start(space, 0, Scripted(unit))
        assert np.subtract(found, (45, 55, 65)).tolist() == list(moved)


def test_without_the_structure_nothing_is_centred() -> None:
    space = Space((9, 9, 9), (3, 3, 3))
    assert CentredSampling(per_patient=4).draws(space) == 0
    with pytest.raises(UsageError, match="centred on Rectum"):
        CentredSampling("Rectum").start(space, 0, words())


@pytest.mark.parametrize("jitter", [-0.1, float("nan"), float("inf")])
def test_a_jitter_is_a_length(jitter: float) -> None:
    assert CentredSampling(jitter_mm=0).jitter_mm == 0
    with pytest.raises(UsageError, match="jitter_mm="):
        CentredSampling(jitter_mm=jitter)
