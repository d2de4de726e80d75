"""Doses of a structure, exact by voxel or in the bins of the `dvh` table, asked in the same way.

A cumulative dose-volume histogram says which volume receives at least a dose. Voxels are counted:
a voxel belongs to a structure or not, and has the dose of its centre. Answers are `Bounds`: from
voxels a number alone, from bins a number and how far off it may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.measures.dose_volume import counts_at_or_above
from lundprobe_zarr.schema.tables import DVH_BINS_PER_GY, DVH_MOST_GY, DVH_STEP_GY

Counts = npt.NDArray[np.int64]
Edges = npt.NDArray[np.float64]


class Bounds(NamedTuple):
    """A number, and bounds of the exact one: `low <= exact <= high`. All NaN if unknown."""

    value: float
    low: float
    high: float


UNKNOWN = Bounds(nan, nan, nan)


def exactly(value: float) -> Bounds:
    """Bounds of a number that is exact."""
    return Bounds(value, value, value)


class Doses(Protocol):
    """The doses of a structure's counted voxels, each of `voxel_cc` cm³."""

    @property
    def voxels(self) -> int:
        """Voxels that are counted: those with a dose."""

    @property
    def voxel_cc(self) -> float:
        """Volume of one, cm³."""

    def dose_of(self, voxels: int) -> Bounds:
        """Largest dose, Gy, that at least `voxels` of them receive; unknown if there are fewer."""

    def count_at(self, gy: float) -> Bounds:
        """Voxels that receive at least `gy`."""

    def mean(self) -> Bounds:
        """Mean dose, Gy; unknown without voxels."""

    def counts(self, edges: Edges) -> Counts:
        """Voxels (m,) that receive at least the doses `edges` (m,), Gy, multiples of the bins."""

    @property
    def most(self) -> float:
        """A dose, Gy, which no voxel exceeds; 0 without voxels."""


@dataclass(frozen=True)
class VoxelDoses:
    """Exact: doses `values` (n,), Gy, finite and in ascending order."""

    values: npt.NDArray[Any]
    voxel_cc: float

    @property
    def voxels(self) -> int:
        """Voxels that are counted."""
        return int(self.values.size)

    def dose_of(self, voxels: int) -> Bounds:
        """Largest dose, Gy, that at least `voxels` receive."""
        if not 0 < voxels <= self.voxels:
            return UNKNOWN
        return exactly(float(self.values[self.voxels - voxels]))

    def count_at(self, gy: float) -> Bounds:
        """Voxels that receive at least `gy`."""
        return exactly(float(counts_at_or_above(self.values, np.array([gy]))[0]))

    def mean(self) -> Bounds:
        """Mean dose, Gy."""
        return exactly(float(self.values.mean(dtype=np.float64))) if self.voxels else UNKNOWN

    def counts(self, edges: Edges) -> Counts:
        """Voxels (m,) that receive at least the doses `edges` (m,), Gy."""
        return counts_at_or_above(self.values, edges)

    @property
    def most(self) -> float:
        """Largest dose, Gy."""
        return float(self.values[-1]) if self.voxels else 0.0


@dataclass(frozen=True)
class BinnedDoses:
    """As the `dvh` table has them: `at_least` (m,), voxels that receive i × 0.1 Gy or more.

    A dose is known to 0.1 Gy, so the middle of its bin is within 0.05 Gy. A volume at a dose is
    that of the nearest edge of a bin, so exact at a dose within 0.05 Gy of the one asked for, and
    at an edge itself.
    """

    at_least: Counts
    voxels: int
    voxel_cc: float

    def dose_of(self, voxels: int) -> Bounds:
        """Middle and edges of the bin of the largest dose, Gy, that at least `voxels` receive."""
        if not 0 < voxels <= self.voxels:
            return UNKNOWN
        # The counts descend: this is how many of the edges are reached by so many.
        reached = len(self.at_least) - int(np.searchsorted(self.at_least[::-1], voxels))
        if not reached:  # below 0 Gy
            return UNKNOWN
        low, high = bin_edges(reached + 1)[-2:].tolist()
        return Bounds((low + high) / 2, low, high)

    def count_at(self, gy: float) -> Bounds:
        """Voxels at the nearest edge to `gy`, and those at the edges around it."""
        edges = bin_edges(len(self.at_least) + 2)
        below = int(np.searchsorted(edges, gy, side="right")) - 1
        if below < 0:
            return UNKNOWN
        if below >= len(self.at_least):
            return exactly(0.0)
        most = float(self.at_least[below])
        if edges[below] == gy:
            return exactly(most)
        least = float(np.append(self.at_least, 0)[below + 1])
        nearer_below = gy - edges[below] < edges[below + 1] - gy
        return Bounds(most if nearer_below else least, least, most)

    def mean(self) -> Bounds:
        """Mean of the middles of the bins, Gy, with the means of their edges."""
        if not self.voxels or len(self.at_least) == 0 or self.at_least[0] < self.voxels:
            return UNKNOWN
        inside = -np.diff(self.at_least, append=0)
        low = float(np.average(bin_edges(len(inside)), weights=inside))
        return Bounds(low + DVH_STEP_GY / 2, low, low + DVH_STEP_GY)

    def counts(self, edges: Edges) -> Counts:
        """Voxels (m,) that receive at least the doses `edges` (m,), Gy, which are bin edges."""
        places = np.rint(edges * DVH_BINS_PER_GY).astype(np.int64)
        known = np.append(self.at_least, 0)
        return np.asarray(known[np.minimum(places, len(self.at_least))], np.int64)

    @property
    def most(self) -> float:
        """End of the last bin, Gy."""
        return float(bin_edges(len(self.at_least) + 1)[-1])

    @classmethod
    def of_volumes(
        cls, cumulative_cc: npt.NDArray[np.float64], voxel_cc: float, counted_cc: float
    ) -> BinnedDoses:
        """The voxels of volumes, cm³, as the table has them; `counted_cc` is that of all."""
        counts = np.rint(cumulative_cc / voxel_cc).astype(np.int64)
        return cls(counts, round(counted_cc / voxel_cc), voxel_cc)


def with_uncovered(doses: VoxelDoses | BinnedDoses, voxels: int) -> VoxelDoses | BinnedDoses:
    """The doses with `voxels` more, outside the planning dose grid, of 0 Gy each."""
    if isinstance(doses, BinnedDoses):
        first = (doses.at_least[0] if len(doses.at_least) else 0) + voxels
        at_least = np.append(np.int64(first), doses.at_least[1:]) if first else doses.at_least
        return BinnedDoses(at_least, doses.voxels + voxels, doses.voxel_cc)
    zeros = np.zeros(voxels, doses.values.dtype)
    values = np.insert(doses.values, np.searchsorted(doses.values, 0.0), zeros)
    return VoxelDoses(values, doses.voxel_cc)


def bin_edges(bins: int, per_gy: int = DVH_BINS_PER_GY) -> Edges:
    """Lower edges (bins,), Gy: multiples of 1 / `per_gy`, each the nearest float64."""
    return np.arange(bins, dtype=np.float64) / per_gy


def binned(values: npt.NDArray[Any] | None, voxel_cc: float) -> npt.NDArray[np.float64] | None:
    """The column `cumulative_cc` of ascending doses `values` (n,), Gy: volumes (m,), cm³.

    None without doses, and where one is above `DVH_MOST_GY`.
    """
    if values is None or (values.size and values[-1] > DVH_MOST_GY):
        return None
    bins = int(max(0.0, float(values[-1])) * DVH_BINS_PER_GY) + 2 if values.size else 0
    counts = counts_at_or_above(values, bin_edges(bins))
    return np.asarray(np.trim_zeros(counts, "b") * voxel_cc, np.float64)
