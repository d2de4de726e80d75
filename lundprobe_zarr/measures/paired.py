"""Paired tests of two steps: does a measure shift, and does its spread change?

Wilcoxon's signed-rank test (1945, doi:10.2307/3001968) is of the differences, without those that
are zero; the Fligner-Killeen test (1976, doi:10.1080/01621459.1976.10481517) is of the spread about
each step's median. Both are those of SciPy. P-values are two-sided; `holm` adjusts those of a
family (Holm, 1979, https://www.jstor.org/stable/4615733).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import FloatArray


@dataclass(frozen=True)
class Tested:
    """Outcome of a test: statistic and p-value; NaN where the values allow no test."""

    statistic: float
    p: float


#: Most differences of which the p-value is exact.
_MOST_EXACT = 50
_NOT = Tested(np.nan, np.nan)


def both_known(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the pairs of which both values are finite."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    return a[known], b[known]


def signed_rank(first: FloatArray, second: FloatArray) -> Tested:
    """Test whether `second - first` (n,) is symmetric about zero; NaN if all are zero.

    The p-value is exact for up to 50 differences of different sizes, else by the normal
    approximation, whatever the version of SciPy.
    """
    from scipy.stats import wilcoxon

    differences = second - first
    differences = differences[differences != 0]
    n = len(differences)
    if not n:
        return _NOT
    is_exact = n <= _MOST_EXACT and len(np.unique(np.abs(differences))) == n
    found = wilcoxon(differences, method="exact" if is_exact else "approx")
    return Tested(float(found.statistic), float(found.pvalue))


def equal_spread(first: FloatArray, second: FloatArray) -> Tested:
    """Test whether two samples have the same spread; NaN for fewer than two, or without any."""
    from scipy.stats import fligner

    if min(len(first), len(second)) < 2:
        return _NOT
    distances = [np.abs(v - np.median(v)) for v in (first, second)]
    if len(np.unique(np.concatenate(distances))) < 2:
        return _NOT
    found = fligner(first, second)
    return Tested(float(found.statistic), float(found.pvalue))


def holm(p: Sequence[float]) -> FloatArray:
    """Adjust p-values of a family of tests by Holm's method; NaN is no test and stays."""
    values = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted = values.copy()
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
