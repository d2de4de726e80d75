"""Label maps against the plainest way to say the same: painting, voxel by voxel."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.measures.label_map import (
    HOLDERS,
    LabelScheme,
    add_mask,
    count_patterns,
)
from lundprobe_zarr.vocabulary.names import HELD_BY, STRUCTURES

SHAPE = (3, 4, 5)
NAMES = st.lists(st.sampled_from(STRUCTURES), min_size=1, max_size=9, unique=True)


@st.composite
def drawn(draw) -> tuple[LabelScheme, dict[str, np.ndarray]]:
    """A scheme, and masks of some or all of its structures."""
    names = draw(NAMES)
    some = draw(st.lists(st.sampled_from(names), unique=True))
    priority = draw(st.none() | st.just(some)) if some else None
    present = draw(st.lists(st.sampled_from(names), unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    masks = {s: rng.random(SHAPE) < share for s in names if s in present}
    return LabelScheme.of(names, priority), masks


def patterns_of(scheme: LabelScheme, masks: dict[str, np.ndarray]) -> np.ndarray:
    patterns = np.zeros(SHAPE, np.uint16)
    for structure, mask in masks.items():
        add_mask(patterns, mask, scheme.structures.index(structure))
    return patterns


@given(drawn())
def test_a_label_map_is_painted_from_the_last_to_the_first(case) -> None:
    scheme, masks = case
    painted = np.zeros(SHAPE, int)
    for structure in reversed(scheme.priority):
        if structure in masks:
            painted[masks[structure]] = scheme.labels[structure]
    patterns = patterns_of(scheme, masks)
    found = scheme.table()[patterns]
    np.testing.assert_array_equal(found, painted)
    counts = count_patterns(patterns, len(scheme.structures))
    absent = [s for s in masks if masks[s].any() and not (painted == scheme.labels[s]).any()]
    assert scheme.hidden(counts) == [s for s in scheme.structures if s in absent]


@given(drawn())
def test_overlaps_and_volumes_are_counted(case) -> None:
    scheme, masks = case
    counts = count_patterns(patterns_of(scheme, masks), len(scheme.structures))
    assert counts.sum() == np.prod(SHAPE)
    none = np.zeros(SHAPE, bool)
    assert scheme.voxels(counts) == {s: masks.get(s, none).sum() for s in scheme.structures}
    found = {(o.first, o.second): o for o in scheme.overlaps(counts)}
    for a, b in combinations(scheme.priority, 2):
        shared = int((masks.get(a, none) & masks.get(b, none)).sum())
        overlap = found.pop((a, b), None)
        assert (overlap.voxels if overlap else 0) == shared
        assert overlap is None or overlap.winner == a
    assert not found


@given(drawn())
def test_regions_keep_every_mask_exactly(case) -> None:
    scheme, masks = case
    patterns = patterns_of(scheme, masks)
    scheme = scheme.with_regions(np.unique(patterns).tolist())
    scheme.require(count_patterns(patterns, len(scheme.structures)))
    found = scheme.table()[patterns]
    none = np.zeros(SHAPE, bool)
    labels = {k: np.atleast_1d(v) for k, v in scheme.labels.items()}
    for structure in scheme.structures:
        np.testing.assert_array_equal(np.isin(found, labels[structure]), masks.get(structure, none))
    numbers = sorted(set(np.concatenate(list(labels.values())).tolist()))
    assert numbers == list(range(scheme.ignore))  # consecutive, as nnU-Net asks for
    order = scheme.class_order
    assert order is not None
    assert len(order) == len(set(order)) == len(scheme.structures)
    assert all(n in labels[s] for s, n in zip(list(labels)[1:], order, strict=True))


def could_be(scheme: LabelScheme, absent: str, there: list[str]) -> bool:
    """The rule, as the documentation words it."""
    if absent not in HOLDERS and any(s not in HOLDERS for s in there):
        return False
    before = scheme.priority[: scheme.priority.index(absent)]
    return scheme.regions is not None or not any(s in before for s in there)


@given(drawn(), st.booleans())
def test_an_absent_structure_is_never_background(case, regions) -> None:
    scheme, masks = case
    patterns = patterns_of(scheme, masks)
    if regions:
        scheme = scheme.with_regions(np.unique(patterns).tolist())
    absent = [s for s in scheme.structures if s not in masks]
    whole, found = scheme.table()[patterns], scheme.table(absent)[patterns]
    for voxel in np.ndindex(SHAPE):
        there = [s for s in scheme.priority if s in masks and masks[s][voxel]]
        unknown = any(could_be(scheme, s, there) for s in absent)
        assert found[voxel] == (scheme.ignore if unknown else whole[voxel])
    if absent:
        assert not (found == 0).any()
    if scheme.hopeless(absent):
        assert (found == scheme.ignore).all()


def test_the_default_priority_puts_what_is_held_first() -> None:
    scheme = LabelScheme.of(["BODY", "PTVT_427", "Rectum", "CTVT_427"])
    assert scheme.priority == ("CTVT_427", "PTVT_427", "Rectum", "BODY")
    assert scheme.labels == {
        "background": 0, "BODY": 1, "PTVT_427": 2, "Rectum": 3, "CTVT_427": 4,
    }  # fmt: skip
    moved = LabelScheme.of(["PTVT_427", "Rectum", "CTVT_427"], ["Rectum"])
    assert moved.priority == ("Rectum", "CTVT_427", "PTVT_427")
    for held, holders in HELD_BY.items():
        assert all(STRUCTURES.index(held) < STRUCTURES.index(h) for h in holders)


def test_a_missing_bulb_leaves_other_organs_and_hides_body() -> None:
    scheme = LabelScheme.of(["Rectum", "PenileBulb", "FemoralHead_L", "BODY"])
    table = scheme.table(absent=["PenileBulb"])
    rectum, head, body = 1, 4, 8
    assert [table[p] for p in (0, body, rectum | body, head | body)] == [5, 5, 1, 3]
    assert scheme.table(["PenileBulb"], ignore=300).dtype == np.uint16
    assert scheme.table(["PenileBulb"], ignore=255).max() == 255


def test_regions_of_a_margin() -> None:
    scheme = LabelScheme.of(["CTVT_427", "PTVT_427", "Rectum"]).with_regions([3, 2, 4, 6])
    assert scheme.labels == {
        "background": 0, "Rectum": [3, 4], "PTVT_427": [1, 2, 4], "CTVT_427": 1,
    }  # fmt: skip
    assert scheme.class_order == [3, 2, 1]
    assert scheme.hopeless(["PTVT_427"]) == ["PTVT_427"]
    with pytest.raises(UsageError, match="voxels in CTVT_427 and Rectum"):
        scheme.require(np.array([9, 0, 0, 1, 0, 1, 0, 0]))


@pytest.mark.parametrize(
    ("structures", "priority", "error", "says"),
    [
        ([], None, UsageError, "none given"),
        (["Rectum", "Rectum"], None, UsageError, "Rectum twice"),
        (["rectum"], None, UnknownLabelError, "nearest: Rectum"),
        (["prostate"], None, UnknownLabelError, "CTVT_427"),
        (["fiducials"], None, UsageError, "fiducials are points"),
        (["Rectum"], ["Bladder"], UsageError, "Bladder is not among the structures"),
        (["Rectum"], ["Rectum", "Rectum"], UsageError, "priority: Rectum twice"),
    ],
)
def test_what_is_no_scheme_is_refused(structures, priority, error, says) -> None:
    with pytest.raises(error, match=says):
        LabelScheme.of(structures, priority)
