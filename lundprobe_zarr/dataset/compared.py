"""The rows of the tables `agreement` and `uncertainty` of one patient, from the store's voxels.

Which rows there are follows from the store's metadata alone. A patient without network and
observers has none. Masks are read one at a time and kept in the box that holds all of a structure's
masks; each has its surface and distance map made once. The uncertainty map is read a few slices at
a time. So a patient takes half a gigabyte of memory, of volumes of four.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.geometry.affine import COSINE_TOLERANCE, spacing
from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.measures.agreement import TOLERANCES_MM, Drawn, compare_drawn, joint_box
from lundprobe_zarr.measures.consensus import (
    Ties,
    decision_patterns,
    majority,
    pattern_counts,
    staple,
)
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.measures.uncertainty import (
    MAP_EDGES,
    MAP_ENDS,
    Binned,
    Edits,
    fold_counts,
    fold_mean,
    map_bins,
)
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import OBSERVERS, STEPS, STRUCTURES, protocol_of

Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
#: Arrays of the segmentations that are compared -> what `source` calls them.
_SOURCES = {
    "mri/nnunet/mask": "nnunet",
    "mri/nnunet/fold_mask": "nnunet_fold",
    "mri/observers/mask": "observer",
}
_MAP = "mri/nnunet/uncertainty"
#: Probability from which a voxel is in the mask of STAPLE.
STAPLE_LEVEL = 0.5
CONSENSUS = ("consensus_majority", "consensus_staple")
#: Slices of the uncertainty map in memory at a time: a row of its chunks.
_SLICES = 8


class Segmentation(NamedTuple):
    """What identifies a segmentation of a structure, as the columns of the tables do."""

    source: str
    observer: str | None = None
    step: int | None = None
    fold: int | None = None

    def columns(self, side: str) -> Row:
        """The columns of side `a` or `b` of a pair."""
        return {f"{side}_{name}": value for name, value in self._asdict().items()}


NNUNET = Segmentation("nnunet")
Pair = tuple[str, Segmentation, Segmentation]


def segmentations(store: StoreMetadata) -> dict[str, list[Segmentation]]:
    """Return the segmentations of each structure that are compared, in canonical order."""
    found: dict[str, list[Segmentation]] = {}
    for path, source in _SOURCES.items():
        for record in store.arrays[path].sources if path in store.arrays else ():
            labels: Mapping[str, Any] = record.labels
            rest = {k: v for k, v in labels.items() if k != "structure"}
            found.setdefault(labels["structure"], []).append(Segmentation(source, **rest))
    return {
        s: sorted(found[s], key=lambda g: tuple(str(v) for v in g))
        for s in STRUCTURES
        if s in found
    }


def comparable(store: StoreMetadata) -> dict[str, list[Segmentation]]:
    """Return those `segmentations` that have rows in the tables: none on a grid that is askew."""
    found = segmentations(store)
    try:
        _ = box_spacing(store) if found else None
    except DatasetError:
        return {}
    return found


def raters(there: Iterable[Segmentation], step: int) -> list[Segmentation]:
    """Return the observers of a step among some segmentations, in order."""
    held = set(there)
    wanted = [Segmentation("observer", observer, step) for observer in OBSERVERS]
    return [s for s in wanted if s in held]


def pairs(there: Sequence[Segmentation]) -> list[Pair]:
    """Return the pairs of a structure's segmentations that the table compares, with their kind.

    Two observers of a step; nnU-Net and each observer; step 1 and step 2 of an observer; each fold
    and the ensemble; and with the consensus of a step's observers, by majority and by STAPLE, each
    of these observers, nnU-Net, each fold, and the consensus of the other step. A consensus takes
    two observers.
    """
    observers = {step: raters(there, step) for step in STEPS}
    network = [s for s in there if s == NNUNET]
    folds = [s for s in there if s.source == "nnunet_fold"]
    first, second = STEPS
    found: list[Pair] = []
    for step in STEPS:
        found += [("observer_observer", a, b) for a, b in combinations(observers[step], 2)]
    found += [("nnunet_observer", a, b) for a in network for s in STEPS for b in observers[s]]
    found += [
        ("step1_step2", a, b)
        for a in observers[first]
        for b in observers[second]
        if a.observer == b.observer
    ]
    found += [("fold_nnunet", a, b) for a in folds for b in network]
    agreed = {s: [Segmentation(c, step=s) for c in CONSENSUS] for s in STEPS}
    agreed = {s: consensus for s, consensus in agreed.items() if len(observers[s]) > 1}
    for step, consensus in agreed.items():
        found += [("consensus_observer", a, b) for a in consensus for b in observers[step]]
        found += [("consensus_nnunet", a, b) for a in consensus for b in network]
        found += [("consensus_fold", a, b) for a in consensus for b in folds]
    both = zip(*agreed.values(), strict=True) if len(agreed) == len(STEPS) else ()
    return found + [("consensus_step1_step2", a, b) for a, b in both]


def has_map(store: StoreMetadata, structure: str) -> bool:
    """Return whether a structure has an uncertainty map."""
    array = store.arrays.get(_MAP)
    return any(r.labels["structure"] == structure for r in (array.sources if array else ()))


def edits(store: StoreMetadata, structure: str) -> list[tuple[Segmentation, str, float]]:
    """Return what the rows of the table `uncertainty` are about: observer, estimate, `bin_low`."""
    there = segmentations(store).get(structure, [])
    folds = sum(s.source == "nnunet_fold" for s in there)
    bins = [("map", float(low)) for low in MAP_EDGES] if has_map(store, structure) else []
    if folds:
        bins += [("fold_mean", float(p)) for p in fold_mean(np.arange(folds + 1), folds)]
    observers = [s for step in STEPS for s in raters(there, step)] if NNUNET in there else []
    return [(observer, *estimate) for observer in observers for estimate in bins]


#: Kinds of pairs, in the table's order.
PAIRS = (
    "observer_observer", "nnunet_observer", "step1_step2", "fold_nnunet", "consensus_observer",
    "consensus_nnunet", "consensus_fold", "consensus_step1_step2",
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """Options of a comparison: what a tie is in a majority, tolerances of the surface Dice, mm."""

    ties: Ties = "background"
    tolerances_mm: tuple[float, ...] = TOLERANCES_MM


def compare_store(location: Location, store: StoreMetadata) -> dict[str, list[Row]]:
    """Return a patient's rows of the tables `agreement` and `uncertainty`, from the voxels.

    Raises `DatasetError` if a voxel cannot be read, or for a grid whose axes are not at right
    angles: its spacing alone does not say how far voxels are apart.
    """
    rows: dict[str, list[Row]] = {"agreement": [], "uncertainty": []}
    for structure, there in segmentations(store).items():
        masks = StructureMasks.read(location, store, structure, there)
        who = _who(store) | {"structure": structure}
        rows["agreement"] += [who | row for row in _agreement(masks, How())]
        rows["uncertainty"] += [who | row for row in _uncertainty(masks)]
    return rows


def agreement_rows(
    location: Location, store: StoreMetadata, structures: Iterable[str], how: How
) -> list[Row]:
    """Return a patient's rows of the table `agreement` of some structures, with options.

    Raises like `compare_store`.
    """
    found, wanted = segmentations(store), set(structures)
    return [
        _who(store) | {"structure": structure} | row
        for structure, there in found.items()
        if structure in wanted
        for row in _agreement(StructureMasks.read(location, store, structure, there), how)
    ]


def _who(store: StoreMetadata) -> Row:
    patient_id, part = store.patient_id, str(store.attributes["part"])
    return {"patient_id": patient_id, "part": part, "protocol": protocol_of(patient_id)}


@dataclass(frozen=True)
class StructureMasks:
    """The masks of one structure on the MRI grid, in the box that holds them all.

    `shape` is that of the whole grid (z, y, x), `spacing_mm` (z, y, x), mm.
    """

    reader: StoreReader
    structure: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    box: Box
    masks: dict[Segmentation, Mask]

    @classmethod
    def read(
        cls,
        location: Location,
        store: StoreMetadata,
        structure: str,
        wanted: Iterable[Segmentation],
    ) -> StructureMasks:
        """Read some segmentations of a structure. Raises like `compare_store`."""
        spacing_mm = box_spacing(store)
        reader = StoreReader(location, store, decoders=1)  # patients are measured side by side
        parts: dict[Segmentation, tuple[Box | None, Mask]] = {}
        for segmentation in wanted:
            path = next(p for p, source in _SOURCES.items() if source == segmentation.source)
            volume = read_segmentation(reader, structure, segmentation, path)
            box = bounding_box(volume)
            parts[segmentation] = box, volume[box].copy() if box else volume[:0]
        whole = joint_box([box for box, _ in parts.values()])
        masks = {s: placed(part, box, whole) for s, (box, part) in parts.items()}
        z, y, x = store.groups["mri"]["shape"]
        return cls(reader, structure, spacing_mm, (z, y, x), whole, masks)

    @property
    def voxels(self) -> int:
        """Voxels of the whole grid."""
        return int(np.prod(self.shape))

    def slabs(self) -> Iterator[tuple[slice, npt.NDArray[np.floating]]]:
        """Yield the uncertainty map (z, y, x), some slices of the whole grid at a time."""
        volume = [(_MAP, {"structure": self.structure})]
        for start in range(0, self.shape[0], _SLICES):
            z = slice(start, min(start + _SLICES, self.shape[0]))
            yield z, self.reader.read(volume, (z, slice(None), slice(None)))[0]


def box_spacing(store: StoreMetadata, grid: str = "mri") -> tuple[float, float, float]:
    """Return the distance of voxel centres along z, y, x, mm, of a grid whose voxels are boxes.

    Raises `DatasetError` if its axes are not at right angles.
    """
    affine = np.asarray(store.groups[grid]["affine"], np.float64)
    i, j, k = (float(s) for s in spacing(affine))
    cosines = affine[:3, :3] / (i, j, k)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > COSINE_TOLERANCE:
        raise DatasetError(
            f"the axes of the {grid} grid are not at right angles",
            where=store.where,
            patient=store.patient_id,
            expected="a grid whose voxels are boxes, for distances between surfaces",
            remedy="resample the masks to one first, and compare those with `lp.compare_masks`",
        )
    return k, j, i


def read_segmentation(reader: StoreReader, structure: str, wanted: Segmentation, path: str) -> Mask:
    """Read the whole mask (z, y, x) of a segmentation, which is in the array at `path`."""
    labels = {"structure": structure, "observer": wanted.observer} | {
        "step": wanted.step,
        "fold": wanted.fold,
    }
    given = {k: v for k, v in labels.items() if v is not None}
    array = reader.array(path)
    record = next(r for r in array.sources if r.labels == given)
    return reader.volume(array, record)


def placed(part: Mask, box: Box | None, whole: Box) -> Mask:
    """Return the mask in the box `whole`, of which `part` is what lies in `box`."""
    mask = np.zeros([s.stop - s.start for s in whole], bool)
    if box is not None:
        within = tuple(
            slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, whole, strict=True)
        )
        mask[within] = part
    return mask


def _agreement(masks: StructureMasks, how: How) -> Iterator[Row]:
    drawn = {s: Drawn(mask, masks.spacing_mm) for s, mask in _with_consensus(masks, how.ties)}
    for kind, a, b in pairs(list(masks.masks)):
        found = compare_drawn(drawn[a], drawn[b], how.tolerances_mm)
        yield {"pair": kind} | a.columns("a") | b.columns("b") | found


def _with_consensus(masks: StructureMasks, ties: Ties) -> Iterator[tuple[Segmentation, Mask]]:
    """Yield every mask, and those of the consensus of each step's observers."""
    yield from masks.masks.items()
    for step in STEPS:
        observers = [masks.masks[s] for s in raters(masks.masks, step)]
        if len(observers) < 2:
            continue
        patterns = decision_patterns(observers)
        counts = pattern_counts(patterns, len(observers), masks.voxels)
        by_staple = staple(counts).probability >= STAPLE_LEVEL
        for name, inside in zip(
            CONSENSUS, (majority(len(observers), ties), by_staple), strict=True
        ):
            yield Segmentation(name, step=step), inside[patterns]


def _uncertainty(masks: StructureMasks) -> Iterator[Row]:
    """Rows of the table `uncertainty`: of each observer, of each estimate, by bin."""
    if NNUNET not in masks.masks:
        return
    start, estimates = masks.masks[NNUNET], _estimates(masks)
    for step in STEPS:
        for observer in raters(masks.masks, step):
            about = {"step": step, "observer": observer.observer}
            for estimate in estimates:
                edits = Edits.of(start, masks.masks[observer], estimate.bins, estimate.number)
                yield from (about | row for row in _bin_rows(estimate, edits))


@dataclass(frozen=True)
class _Estimate:
    """An estimate of uncertainty: bins of the voxels in the box, and all voxels by bin."""

    name: str
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    bins: npt.NDArray[np.uint8]
    whole: Binned

    @property
    def number(self) -> int:
        """Number of bins."""
        return len(self.low)


def _estimates(masks: StructureMasks) -> list[_Estimate]:
    folds = [m for s, m in masks.masks.items() if s.source == "nnunet_fold"]
    size = [s.stop - s.start for s in masks.box]
    held = fold_counts(folds) if folds else np.zeros(size, np.uint8)
    number, edges = len(folds) + 1, np.array(MAP_EDGES)
    if not has_map(masks.reader.metadata, masks.structure):
        outside = np.array([masks.voxels - held.size, *[0] * (number - 1)])
        counted = Binned.of(held, number, None)
        by_fold = Binned(counted.voxels + outside, counted.map_sum)
        return [_fold_estimate(held, by_fold)] if folds else []
    bins, by_map, by_fold = _map_bins(masks, held, number)
    found = [_Estimate("map", edges, np.array(MAP_ENDS), bins, by_map)]
    return found + ([_fold_estimate(held, by_fold)] if folds else [])


def _fold_estimate(held: npt.NDArray[np.uint8], whole: Binned) -> _Estimate:
    folds = len(whole.voxels) - 1
    values = fold_mean(np.arange(folds + 1), folds)
    return _Estimate("fold_mean", values, values, held, whole)


def _map_bins(
    masks: StructureMasks, held: npt.NDArray[np.uint8], number: int
) -> tuple[npt.NDArray[np.uint8], Binned, Binned]:
    """Return the map's bins in the box, and all voxels by these and by the folds that hold them."""
    bins = np.zeros(held.shape, np.uint8)
    by_map, by_fold = [], []
    z, y, x = masks.box
    for slab, values in masks.slabs():
        numbers = map_bins(values)
        by_map.append(Binned.of(numbers, len(MAP_EDGES), values))
        folds = np.zeros(values.shape, np.uint8)
        here = slice(max(slab.start, z.start), min(slab.stop, z.stop))
        if here.start < here.stop:
            of_slab = slice(here.start - slab.start, here.stop - slab.start), y, x
            of_box = slice(here.start - z.start, here.stop - z.start)
            bins[of_box] = numbers[of_slab]
            folds[of_slab] = held[of_box]
        by_fold.append(Binned.of(folds, number, values))
    return bins, reduce(add, by_map), reduce(add, by_fold)


def _bin_rows(estimate: _Estimate, edits: Edits) -> Iterator[Row]:
    whole = estimate.whole
    for n in range(estimate.number):
        voxels, edited = int(whole.voxels[n]), int(edits.added[n] + edits.removed[n])
        mean = float(whole.map_sum[n]) / voxels if voxels else np.nan
        yield {
            "estimate": estimate.name,
            "bin_low": float(estimate.low[n]),
            "bin_high": float(estimate.high[n]),
            "voxels": voxels,
            "inside_voxels": int(edits.inside[n]),
            "edited_voxels": edited,
            "added_voxels": int(edits.added[n]),
            "removed_voxels": int(edits.removed[n]),
            "edit_rate": edited / voxels if voxels else None,
            "map_mean": mean if np.isfinite(mean) else None,
        }
