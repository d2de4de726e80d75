"""The consensus of several delineations: by majority, or by STAPLE.

Both need only know how many voxels of the whole volume each *pattern* has: which raters marked it,
as the bits of a number. For n raters there are 2^n patterns, so expectation maximisation takes
microseconds whatever the volume's size.

STAPLE (Warfield, Zou and Wells, IEEE TMI 23(7):903-921, 2004, doi:10.1109/TMI.2004.828354) depends
on how much background is counted, through the prior and through the specificities. It is taken
over the whole volume, as ITK's filter does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray

Mask = npt.NDArray[np.bool_]
#: What becomes of a voxel that exactly half of the raters marked.
Ties = Literal["background", "foreground"]
TIES: tuple[Ties, ...] = get_args(Ties)
#: Most raters: patterns are held in 16 bits.
MOST_RATERS = 16
#: A change of all sensitivities and specificities below this ends the maximisation: seven digits,
#: as in ITK's filter.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Staple:
    """Outcome of STAPLE, by pattern and by rater.

    `probability` (2^n,) of the foreground by pattern; `sensitivity` and `specificity` (n,) of the
    raters, NaN where all masks are empty; `prior`, the share of all decisions for the foreground.
    """

    probability: FloatArray
    sensitivity: FloatArray
    specificity: FloatArray
    prior: float


def decision_patterns(masks: Sequence[Mask]) -> npt.NDArray[np.uint16]:
    """Return which masks hold each voxel, as bits: bit n is mask n.

    Raises `UsageError` for fewer than two masks and for more than `MOST_RATERS`.
    """
    require_raters(len(masks))
    patterns = masks[0].astype(np.uint16)
    for bit, mask in enumerate(masks[1:], start=1):
        patterns |= mask.astype(np.uint16) << np.uint16(bit)
    return patterns


def require_raters(raters: int) -> None:
    """Raise `UsageError` unless a consensus of so many raters can be formed."""
    if not 2 <= raters <= MOST_RATERS:
        raise UsageError(
            f"a consensus of {raters} masks", expected=f"at least 2 and at most {MOST_RATERS}"
        )


def pattern_counts(
    patterns: npt.NDArray[np.uint16], raters: int, voxels: int
) -> npt.NDArray[np.int64]:
    """Return the voxels (2^n,) of each pattern in a volume of `voxels`.

    `patterns` are those of a part of the volume that holds every mask.
    """
    counts = np.bincount(patterns.ravel(), minlength=1 << raters).astype(np.int64)
    counts[0] += voxels - patterns.size
    return counts


def votes(raters: int) -> npt.NDArray[np.bool_]:
    """Return the decisions (2^n, n) of each rater in each pattern."""
    bits: npt.NDArray[np.bool_] = (np.arange(1 << raters)[:, None] >> np.arange(raters)) & 1 > 0
    return bits


def majority(raters: int, ties: Ties = "background") -> Mask:
    """Return whether each pattern (2^n,) is in the majority's mask.

    More than half of the raters have to have marked it. With `ties="foreground"` half suffice.
    Raises `UsageError` for other `ties`.
    """
    if ties not in TIES:
        raise UsageError(f"ties={ties!r}", expected=" or ".join(map(repr, TIES)))
    marked = 2 * votes(raters).sum(axis=1)
    found: Mask = marked >= raters if ties == "foreground" else marked > raters
    return found


def staple(counts: npt.NDArray[np.int64], tolerance: float = TOLERANCE) -> Staple:
    """Estimate raters' performance and the true mask from the voxels (2^n,) of each pattern.

    Starts, as ITK's `STAPLEImageFilter`, from the mean of the masks, with its mean as the prior,
    and ends when no sensitivity or specificity changes by more than `tolerance`.
    """
    raters = len(counts).bit_length() - 1
    decided = votes(raters)
    weight, total = decided.mean(axis=1), counts.sum()
    prior = float(weight @ counts / total)
    if prior == 0:
        nothing = np.full(raters, np.nan)
        return Staple(np.zeros(len(counts)), nothing, nothing, 0.0)
    rates, change = np.full((2, raters), np.inf), np.inf
    while change > tolerance:  # it converges: no step makes the masks less likely
        before, rates = rates, _rates(weight, counts, decided)
        weight = _weights(rates, decided, prior)
        change = np.abs(rates - before).max()
    return Staple(weight, rates[0], rates[1], prior)


def _rates(weight: FloatArray, counts: npt.NDArray[np.int64], decided: Mask) -> FloatArray:
    """Sensitivities and specificities (2, n), given the probability of each pattern."""
    inside, outside = weight * counts, (1 - weight) * counts
    with np.errstate(invalid="ignore"):  # every voxel may be inside, or none
        sensitivity = inside @ decided / inside.sum()
        specificity = outside @ ~decided / outside.sum()
    return np.stack([sensitivity, np.nan_to_num(specificity, nan=1.0)])


def _weights(rates: FloatArray, decided: Mask, prior: float) -> FloatArray:
    """Probability (2^n,) that a voxel of each pattern is inside, given the raters' rates."""
    sensitivity, specificity = rates
    inside = prior * np.where(decided, sensitivity, 1 - sensitivity).prod(axis=1)
    outside = (1 - prior) * np.where(decided, 1 - specificity, specificity).prod(axis=1)
    total = inside + outside
    return np.asarray(np.divide(inside, total, out=np.zeros_like(inside), where=total > 0))
