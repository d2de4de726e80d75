"""The consensus of masks, and uncertainty of folds: against SimpleITK, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.consensus import (
    decision_patterns,
    majority,
    pattern_counts,
    staple,
    votes,
)
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.measures.uncertainty import (
    Binned,
    Edits,
    decision_sd,
    disagreement,
    entropy_bits,
    fold_counts,
    fold_mean,
    map_bins,
)


def raters(number: int, seed: int = 0) -> list[np.ndarray]:
    """Masks of one blob that differ at its border."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((12, 24, 24))
    truth = 8 - np.sqrt((2 * (z - 6)) ** 2 + (y - 12) ** 2 + (x - 12) ** 2)
    return [
        truth + 6 * gaussian_filter(rng.standard_normal(z.shape), 1) > bias
        for bias in rng.uniform(-1.5, 1.5, number)
    ]


def of_simpleitk(masks: list[np.ndarray]) -> tuple[np.ndarray, list[float], list[float]]:
    peer = sitk.STAPLEImageFilter()
    image = peer.Execute([sitk.GetImageFromArray(m.astype(np.uint8)) for m in masks])
    return sitk.GetArrayFromImage(image), list(peer.GetSensitivity()), list(peer.GetSpecificity())


@pytest.mark.parametrize(("number", "seed"), [(2, 0), (4, 1), (10, 2)])
def test_staple_is_that_of_simpleitk(number: int, seed: int) -> None:
    masks = raters(number, seed)
    patterns = decision_patterns(masks)
    found = staple(pattern_counts(patterns, number, patterns.size))
    probability, sensitivity, specificity = of_simpleitk(masks)
    np.testing.assert_allclose(found.probability[patterns], probability, atol=1e-6)
    np.testing.assert_allclose(found.sensitivity, sensitivity, atol=1e-6)
    np.testing.assert_allclose(found.specificity, specificity, atol=1e-6)


def test_staple_of_a_box_is_that_of_the_whole_volume_if_all_voxels_are_counted() -> None:
    masks = raters(4, 3)
    whole = decision_patterns(masks)
    inner = bounding_box(np.any(masks, axis=0))
    assert inner is not None
    assert whole[inner].size < whole.size
    cropped = pattern_counts(whole[inner], 4, whole.size)
    np.testing.assert_array_equal(cropped, pattern_counts(whole, 4, whole.size))
    alone = staple(pattern_counts(whole[inner], 4, whole[inner].size))
    assert np.abs(alone.specificity - staple(cropped).specificity).max() > 1e-4


@pytest.mark.parametrize("full", [False, True])
def test_staple_of_masks_that_are_all_the_same(full: bool) -> None:
    mask = np.full((3, 4, 5), full)
    found = staple(pattern_counts(decision_patterns([mask, mask]), 2, mask.size))
    assert np.isfinite(found.probability).all()
    assert found.probability[3 if full else 0] == (1 if full else 0)
    assert np.isnan(found.sensitivity).all() == (not full)


def test_majority_and_its_ties() -> None:
    background, foreground = majority(4), majority(4, "foreground")
    count = votes(4).sum(1)
    np.testing.assert_array_equal(background, count > 2)
    np.testing.assert_array_equal(foreground, count >= 2)
    np.testing.assert_array_equal(majority(3), majority(3, "foreground"))
    masks = raters(3)
    patterns = decision_patterns(masks)
    np.testing.assert_array_equal(majority(3)[patterns], np.sum(masks, axis=0) >= 2)


def test_what_is_no_consensus_is_refused() -> None:
    mask = np.ones((1, 1, 1), bool)
    with pytest.raises(UsageError, match="of 1 masks"):
        decision_patterns([mask])
    with pytest.raises(UsageError, match="of 17 masks"):
        decision_patterns([mask] * 17)
    with pytest.raises(UsageError, match="ties='both'"):
        majority(4, "both")  # type: ignore[arg-type]


def test_estimates_of_folds() -> None:
    k = np.arange(11)
    p = fold_mean(k, 10)
    np.testing.assert_allclose(p, k / 10)
    assert entropy_bits([0, 0.5, 1]).tolist() == [0, 1, 0]
    assert entropy_bits(0.1) == pytest.approx(-0.1 * np.log2(0.1) - 0.9 * np.log2(0.9))
    folds = np.array([[True] * n + [False] * (10 - n) for n in k])
    np.testing.assert_allclose(decision_sd(p), folds.std(axis=1))
    pairs = [(a, b) for a in range(10) for b in range(a)]
    differ = [np.mean([row[a] != row[b] for a, b in pairs]) for row in folds]
    np.testing.assert_allclose(disagreement(k, 10), differ)
    assert np.isnan(disagreement(1, 1))


def test_bins_of_the_map_begin_at_their_edge_and_nan_is_in_none() -> None:
    values = np.array([0, 0.0999, 0.1, 0.25, 0.3, 0.4, 0.5, 0.6, np.nan], np.float32)
    bins = map_bins(values)
    assert bins.tolist() == [0, 0, 1, 2, 3, 4, 4, 4, 255]
    counted = Binned.of(bins, 5, values)
    assert counted.voxels.tolist() == [2, 1, 1, 1, 3]
    assert counted.map_sum[4] == pytest.approx(1.5)
    twice = counted + counted
    assert twice.voxels.tolist() == [4, 2, 2, 2, 6]
    assert np.isnan(Binned.of(bins, 5, None).map_sum).all()


def test_edits_by_bin() -> None:
    start = np.array([1, 1, 1, 0, 0, 0], bool)
    edited = np.array([1, 0, 1, 1, 0, 1], bool)
    found = Edits.of(start, edited, np.array([0, 1, 1, 1, 0, 255], np.uint8), 2)
    assert found.inside.tolist() == [1, 2]
    assert found.added.tolist() == [0, 1]
    assert found.removed.tolist() == [0, 1]


def test_folds_are_counted() -> None:
    masks = raters(10, 4)
    np.testing.assert_array_equal(fold_counts(masks), np.sum(masks, axis=0))
