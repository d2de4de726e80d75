"""Label maps: one whole number per voxel, of several masks that may overlap.

The masks that hold a voxel are the bits of a number, its *pattern*. What a voxel becomes, which
structures overlap and which combinations occur follow from patterns alone, of which there are at
most 2^9. So a volume can be labelled a few slices at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.vocabulary.names import HELD_BY, STRUCTURES
from lundprobe_zarr.vocabulary.suggest import require_structure

Mask = npt.NDArray[np.bool_]
Patterns = npt.NDArray[np.uint16]
Counts = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]

BACKGROUND = "background"
IGNORE = "ignore"
#: Structures that share voxels with others by definition. All others exclude one another.
HOLDERS = frozenset(holder for holders in HELD_BY.values() for holder in holders)


@dataclass(frozen=True)
class Overlap:
    """Two structures of one patient that share voxels.

    Attributes
    ----------
    first, second : str
        The structures. The first precedes the second in the priority.
    voxels : int
        Voxels in both masks.
    winner : str or None
        Whose label these voxels have, if no third structure precedes both. None for regions,
        where both keep them.
    """

    first: str
    second: str
    voxels: int
    winner: str | None


@dataclass(frozen=True)
class LabelScheme:
    """Which number stands for which structures.

    Attributes
    ----------
    structures : tuple of str
        The structures; bit n of a pattern is the mask of number n.
    priority : tuple of str
        The same structures, those first that win a shared voxel.
    regions : tuple of int or None
        For regions, the pattern of each label from 1 on. Without regions the label of a structure
        is its place in `structures`, from 1 on.
    """

    structures: tuple[str, ...]
    priority: tuple[str, ...]
    regions: tuple[int, ...] | None = None

    @classmethod
    def of(cls, structures: Sequence[str], priority: Sequence[str] | None = None) -> LabelScheme:
        """Return the scheme with one label per structure.

        `priority` may name some of the structures; the others follow in canonical order, in which
        what is held comes before what holds it. Raises `UnknownLabelError` for an unknown
        structure, `UsageError` for none, for one given twice, and for a priority of others.
        """
        named = _distinct("structures", structures)
        first = _distinct("priority", priority) if priority is not None else ()
        if strange := [s for s in first if s not in named]:
            raise UsageError(
                f"priority: {strange[0]} is not among the structures",
                expected=f"some of {', '.join(named)}",
            )
        rest = [s for s in STRUCTURES if s in named and s not in first]
        return cls(named, (*first, *rest))

    def with_regions(self, patterns: Iterable[int]) -> LabelScheme:
        """Return the scheme with a label for each combination of structures.

        Those are the `patterns` that occur, 0 left out, and of each structure that with its
        holders alone, which comes first.
        """
        own = [self._own(s) for s in self.structures]
        others = sorted(set(patterns) - {0, *own})
        return LabelScheme(self.structures, self.priority, (*own, *others))

    def _bit(self, structure: str) -> int:
        return 1 << self.structures.index(structure)

    def _own(self, structure: str) -> int:
        """Return the pattern of a voxel in a structure and in those that hold it."""
        held = [h for h in HELD_BY[structure] if h in self.structures]
        return sum(self._bit(s) for s in (structure, *held))

    def _with(self, pattern: int, among: Iterable[str]) -> list[str]:
        return [s for s in among if pattern & self._bit(s)]

    @property
    def ignore(self) -> int:
        """The ignore label: the one after the last."""
        return 1 + len(self.structures if self.regions is None else self.regions)

    @property
    def labels(self) -> dict[str, int | list[int]]:
        """Background, structure or region -> its label, or all labels of the region.

        Regions are in the order in which they are painted: a later one wins.
        """
        found: dict[str, int | list[int]] = {BACKGROUND: 0}
        if self.regions is None:
            return found | {s: n for n, s in enumerate(self.structures, start=1)}
        for structure in reversed(self.priority):
            numbers = [n for n, p in enumerate(self.regions, start=1) if p & self._bit(structure)]
            found[structure] = numbers if len(numbers) > 1 else numbers[0]
        return found

    @property
    def class_order(self) -> list[int] | None:
        """The label that stands for each region once painted, in the order of `labels`."""
        if self.regions is None:
            return None
        return [1 + self.regions.index(self._own(s)) for s in reversed(self.priority)]

    def hopeless(self, absent: Iterable[str]) -> list[str]:
        """Return the absent structures that could be in every voxel, so that none is known."""
        return [s for s in absent if self.regions is not None and s in HOLDERS]

    def table(self, absent: Collection[str] = (), ignore: int | None = None) -> Labels:
        """Return the label (2^n,) of each pattern: uint8, or uint16 if a label is above 255.

        Where an `absent` structure could be, that is the label `ignore`. An absent structure could
        be in a voxel unless that has a label that precedes it, or holds a structure that it
        excludes. `PTVT_427` and `BODY` exclude nothing, all others one another. A combination that
        the regions do not have is 0; `require` refuses it.
        """
        value = self.ignore if ignore is None else ignore
        dtype = np.uint8 if max(self.ignore - 1, value) <= np.iinfo(np.uint8).max else np.uint16
        table = np.zeros(1 << len(self.structures), dtype)
        drawn = sum(self._bit(s) for s in self.structures if s not in absent)
        for pattern in range(len(table)):
            if pattern & ~drawn:
                continue  # does not occur: an absent structure has no mask
            unknown = any(self._could_be(s, pattern) for s in absent)
            table[pattern] = value if unknown else self._label(pattern)
        return table

    def _could_be(self, absent: str, pattern: int) -> bool:
        there = self._with(pattern, self.priority)
        if absent not in HOLDERS and any(s not in HOLDERS for s in there):
            return False
        rank = self.priority.index
        return self.regions is not None or not there or rank(absent) < rank(there[0])

    def _label(self, pattern: int) -> int:
        if not pattern:
            return 0
        if self.regions is None:
            return 1 + self.structures.index(self._with(pattern, self.priority)[0])
        return 1 + self.regions.index(pattern) if pattern in self.regions else 0

    def require(self, counts: Counts) -> None:
        """Raise `UsageError` if a pattern occurs in `counts` (2^n,) that has no region."""
        there = [p for p in np.flatnonzero(counts).tolist() if p]
        lacking = [p for p in there if self.regions is not None and p not in self.regions]
        if lacking:
            raise UsageError(
                f"voxels in {' and '.join(self._with(lacking[0], self.structures))}",
                expected="a combination that has a label",
                remedy="make the regions of all patients",
            )

    def overlaps(self, counts: Counts) -> list[Overlap]:
        """Return the pairs of structures that share voxels; `counts` (2^n,) are of patterns."""
        numbers = np.arange(len(counts))
        found = []
        for first, second in combinations(self.priority, 2):
            both = self._bit(first) | self._bit(second)
            voxels = int(counts[numbers & both == both].sum())
            if voxels:
                winner = first if self.regions is None else None
                found.append(Overlap(first, second, voxels, winner))
        return found

    def voxels(self, counts: Counts) -> dict[str, int]:
        """Return the voxels of each mask; `counts` (2^n,) are of patterns."""
        numbers = np.arange(len(counts))
        return {s: int(counts[numbers & self._bit(s) > 0].sum()) for s in self.structures}

    def hidden(self, counts: Counts) -> list[str]:
        """Return the structures with a mask of which no voxel has their label."""
        if self.regions is not None:
            return []
        there = [p for p in np.flatnonzero(counts).tolist() if p]
        winners = {self._with(p, self.priority)[0] for p in there}
        return [s for s, n in self.voxels(counts).items() if n and s not in winners]


def _distinct(name: str, structures: Sequence[str]) -> tuple[str, ...]:
    listed = (structures,) if isinstance(structures, str) else tuple(structures)
    if not listed:
        raise UsageError(f"{name}: none given", expected="at least one structure")
    for number, structure in enumerate(listed):
        if "fiducial" in str(structure).lower():
            raise UsageError(
                f"{name}: {structure!r}",
                expected=f"structures: {', '.join(STRUCTURES)}",
                remedy="fiducials are points in the prostate, not a structure to be labelled",
            )
        require_structure(structure)
        if structure in listed[:number]:
            raise UsageError(f"{name}: {structure} twice", expected="each structure once")
    return listed


def add_mask(patterns: Patterns, mask: Mask, bit: int) -> None:
    """Set a bit in the patterns (z, y, x) of all voxels of a mask of the same shape."""
    box = bounding_box(mask)
    if box is not None:
        patterns[box] |= mask[box].astype(np.uint16) << np.uint16(bit)


def count_patterns(patterns: Patterns, structures: int) -> Counts:
    """Return how many voxels (2^n,) have each pattern of n structures."""
    counts = np.zeros(1 << structures, np.int64)
    for plane in patterns:  # one at a time: counting takes eight bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return counts
