"""Paired tests: known answers, and values that allow no test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lundprobe_zarr.measures.paired import both_known, equal_spread, holm, signed_rank


def test_signed_ranks_leave_zeros_out_and_give_the_exact_p() -> None:
    first = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    found = signed_rank(first, first + np.array([1.0, 2.0, 3.0, 4.0, 5.0, 0.0]))
    assert found.statistic == 0
    assert found.p == pytest.approx(2 / 2**5)  # of five differences, all of one sign
    tied = signed_rank(first, first + np.array([1.0, 1.0, 1.0, -1.0, 2.0, 2.0]))
    assert tied.p == pytest.approx(stats.wilcoxon([1, 1, 1, -1, 2, 2], method="approx").pvalue)
    assert np.isnan(signed_rank(first, first).p)
    assert np.isnan(signed_rank(first[:0], first[:0]).p)


def test_spread_is_compared_about_the_medians() -> None:
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 1, 40), rng.normal(5, 3, 40)
    found = equal_spread(narrow, wide)
    assert found.p == pytest.approx(stats.fligner(narrow, wide).pvalue)
    assert found.p < 1e-4
    assert equal_spread(narrow, narrow + 9).p == pytest.approx(1, abs=0.05)
    assert np.isnan(equal_spread(narrow[:1], wide).p)
    assert np.isnan(equal_spread(np.ones(4), np.ones(4)).p)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, np.nan, 0.5]).tolist() == pytest.approx(
        [0.04, 0.09, 0.09, np.nan, 0.5], nan_ok=True
    )
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_pairs_with_an_unknown_value_are_left_out() -> None:
    a, b = both_known([1, 2, np.nan, 4], [1, np.nan, 3, 5])
    assert (a.tolist(), b.tolist()) == ([1, 4], [1, 5])
