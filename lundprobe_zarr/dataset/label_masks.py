"""The masks of one patient that make a label map, read a few slices at a time.

Memory is that of some slices: full-size volumes take 180 MB each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.label_map import Counts, LabelScheme, Overlap, Patterns, add_mask
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import Part, StoreReader
from lundprobe_zarr.stores.shard import Box
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STEPS
from lundprobe_zarr.vocabulary.suggest import unknown_label

#: What identifies a mask of each source, besides its structure.
_LABELS = {"clinical": (), "nnunet": (), "nnunet_fold": ("fold",), "observer": ("step", "observer")}
_KNOWN: dict[str, tuple[Any, ...]] = {"fold": FOLDS, "step": STEPS, "observer": OBSERVERS}
_GRIDS = tuple(dict.fromkeys(path.split("/")[0] for path in SEGMENTATION_SOURCES))


@dataclass(frozen=True)
class MaskSource:
    """Whose masks, on which grid.

    Attributes
    ----------
    source : str
        `clinical`, `nnunet`, `nnunet_fold` or `observer`.
    grid : str
        `mri` or `sct`.
    labels : tuple of (str, str or int)
        The fold of `nnunet_fold`, or step and observer of `observer`.
    """

    source: str
    grid: str
    labels: tuple[tuple[str, str | int], ...] = ()

    @classmethod
    def of(cls, source: str = "clinical", grid: str = "mri", **labels: Any) -> MaskSource:
        """Return a source that is known to exist; labels that are None are left out.

        Raises `UnknownLabelError` for an unknown source, fold, step or observer, `UsageError` for a
        grid without such masks, and for labels that the source does not take or that it lacks.
        """
        if source not in _LABELS:
            raise unknown_label("source", source, _LABELS)
        if grid not in _GRIDS:
            raise UsageError(f"grid {grid!r} has no masks", expected=" or ".join(_GRIDS))
        if grid == "sct" and source != "clinical":
            raise UsageError(
                f"source {source!r} on the sct grid, which has clinical masks alone",
                remedy="choose the mri grid: networks and observers drew on it",
            )
        given = {name: value for name, value in labels.items() if value is not None}
        if set(given) != set(_LABELS[source]):
            raise UsageError(
                f"source {source!r} with {', '.join(given) or 'no label'}",
                expected=" and ".join(_LABELS[source]) or "neither fold nor step nor observer",
            )
        for name, value in given.items():
            if value not in _KNOWN[name]:
                raise unknown_label(name, value, _KNOWN[name])
        return cls(source, grid, tuple((n, given[n]) for n in _LABELS[source]))

    def __str__(self) -> str:
        return " ".join([self.source, *(f"{n} {v}" for n, v in self.labels), f"({self.grid} grid)"])

    @property
    def path(self) -> str:
        """Path of the array of these masks."""
        return next(
            path
            for path, source in SEGMENTATION_SOURCES.items()
            if source == self.source and path.startswith(f"{self.grid}/")
        )

    def present(self, store: StoreMetadata) -> list[str]:
        """Return the structures that have a mask of this source, in canonical order.

        A clinical mask without a voxel counts as none: the structure was not delineated.
        """
        array = store.arrays.get(self.path)
        wanted = dict(self.labels)
        there = [
            r.labels
            for r in (array.sources if array else ())
            if self.source != "clinical" or r.voxels != 0
        ]
        return [str(r["structure"]) for r in there if wanted.items() <= r.items()]

    def part(self, reader: StoreReader, structure: str, box: Box) -> Part:
        """Return a box of a structure's mask, for `StoreReader.read_parts`."""
        array = reader.array(self.path)
        labels = {"structure": structure} | dict(self.labels)
        return Part(self.path, reader.index(array, labels), box)


def slabs(reader: StoreReader, path: str) -> Iterator[Box]:
    """Yield boxes that together cover a volume of an array, one row of its chunks each."""
    array = reader.array(path)
    z, y, x = array.volume_shape
    step = array.chunk[0]
    for start in range(0, z, step):
        yield slice(start, min(start + step, z)), slice(0, y), slice(0, x)


def read_patterns(
    reader: StoreReader, source: MaskSource, structures: Sequence[str], box: Box
) -> Patterns:
    """Return which of the structures' masks hold each voxel of a box; bit n is structure n.

    Structures without a mask leave their bit 0. Raises `DamagedStoreError` for a byte that is
    missing or wrong.
    """
    there = source.present(reader.metadata)
    z, y, x = (s.stop - s.start for s in box)
    patterns = np.zeros((z, y, x), np.uint16)
    scratch = np.empty((z, y, x), bool)
    for bit, structure in enumerate(structures):
        if structure in there:
            part = source.part(reader, structure, box)
            (mask,) = reader.read_parts([part], lambda: [scratch])
            add_mask(patterns, mask, bit)
    return patterns


@dataclass(frozen=True)
class Tally:
    """What became of one patient's masks in a label map.

    Attributes
    ----------
    voxels : dict
        Structure -> voxels of its mask; absent structures are not in it.
    overlaps : tuple of Overlap
        Pairs that share voxels.
    hidden : tuple of str
        Structures with a mask of which other structures won every voxel.
    ignored : int
        Voxels with the ignore label.
    """

    voxels: dict[str, int]
    overlaps: tuple[Overlap, ...]
    hidden: tuple[str, ...]
    ignored: int

    @classmethod
    def of(cls, scheme: LabelScheme, counts: Counts, absent: Sequence[str], ignore: int) -> Tally:
        """Return the tally of pattern counts (2^n,)."""
        table = scheme.table(absent, ignore)
        return cls(
            {s: n for s, n in scheme.voxels(counts).items() if s not in absent},
            tuple(scheme.overlaps(counts)),
            tuple(scheme.hidden(counts)),
            int(counts[table == ignore].sum()) if absent else 0,
        )
