"""How far predictions agree with what a dataset holds: the rows of the table `agreement`, for them.

Of each predicted structure all segmentations of the patient's store on the same grid are a, and the
prediction is b: differences are the prediction's less the reference's. What cannot be compared is
listed with its reason, and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.dataset.compared import (
    How,
    Segmentation,
    box_spacing,
    placed,
    read_segmentation,
)
from lundprobe_zarr.dataset.predictions import MaskSource, NotCompared, grid_named
from lundprobe_zarr.measures.agreement import Drawn, compare_drawn, joint_box
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import STRUCTURES, protocol_of

Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
CLINICAL = "clinical"
#: Kinds of pairs with a prediction -> the source of a, and its array below the grid's group.
PREDICTION_PAIRS: dict[str, tuple[str, str]] = {
    "clinical_prediction": (CLINICAL, "clinical/mask"),
    "nnunet_prediction": ("nnunet", "nnunet/mask"),
    "fold_prediction": ("nnunet_fold", "nnunet/fold_mask"),
    "observer_prediction": ("observer", "observers/mask"),
}


@dataclass(frozen=True)
class Wanted:
    """What is compared: pairs, structures (None: all that were predicted), the grid, and how."""

    pairs: Sequence[str] = tuple(PREDICTION_PAIRS)
    structures: Sequence[str] | None = None
    grid: str = "mri"
    how: How = field(default_factory=How)


@dataclass
class Compared:
    """Rows of pairs, and what was not compared."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[NotCompared] = field(default_factory=list)


def compare_predictions(
    location: Location,
    stores: Iterable[StoreMetadata],
    predictions: MaskSource,
    wanted: Wanted,
    done: Callable[[str], None] = lambda patient_id: None,
) -> Compared:
    """Compare the predictions of some patients with the segmentations in their stores.

    Reads the voxels. Raises `DatasetError` or `UsageError` for predictions that do not fit their
    patient, and for what cannot be read.
    """
    found = Compared()
    predicted: dict[str, dict[str, set[str]]] = {name: {} for name in predictions.names}
    there = {name: set(predictions.patients(name)) for name in predictions.names}
    for store in stores:
        for name in predictions.names:
            if store.patient_id not in there[name]:
                reason = "no prediction of this patient"
            elif (grid := predictions.grid(name, store)) not in (None, wanted.grid):
                reason = f"it is on the {grid} grid: give grid={grid!r}"
            else:
                some = _compare(location, store, predictions, name, wanted, found)
                predicted[name][store.patient_id] = some
                continue
            found.left_out.append(NotCompared(store.patient_id, name, None, reason))
        done(store.patient_id)
    found.left_out += _not_predicted(predicted, wanted)
    return found


def _not_predicted(
    predicted: Mapping[str, Mapping[str, set[str]]], wanted: Wanted
) -> Iterator[NotCompared]:
    """Yield the structures that were asked for, or that others have, and a patient has not."""
    for name, by_patient in predicted.items():
        expected = set(wanted.structures or ()).union(*by_patient.values())
        for patient_id, there in by_patient.items():
            for structure in (s for s in STRUCTURES if s in expected - there):
                reason = "this structure was not predicted"
                yield NotCompared(patient_id, name, structure, reason)


def _compare(
    location: Location,
    store: StoreMetadata,
    predictions: MaskSource,
    name: str,
    wanted: Wanted,
    found: Compared,
) -> set[str]:
    """Add a patient's rows; return the structures that were predicted."""
    grid_named(store, wanted.grid)
    reader = StoreReader(location, store)
    predicted = set()
    for structure, mask in predictions.read(name, store, wanted.grid, wanted.structures):
        predicted.add(structure)
        references = _references(store, structure, wanted)
        if not references:
            reason = f"the patient has no such segmentation on the {wanted.grid} grid"
            found.left_out.append(NotCompared(store.patient_id, name, structure, reason))
            continue
        whose = _who(store) | {"structure": structure}
        found.rows += [
            whose | row for row in _rows(reader, structure, mask, name, references, wanted)
        ]
    return predicted


def _who(store: StoreMetadata) -> Row:
    patient_id, part = store.patient_id, str(store.attributes["part"])
    return {"patient_id": patient_id, "part": part, "protocol": protocol_of(patient_id)}


_References = list[tuple[str, str, Segmentation]]


def _references(store: StoreMetadata, structure: str, wanted: Wanted) -> _References:
    """Return kind of pair, array and segmentation of all that a structure is compared with.

    A clinical mask without a voxel is none: the structure was not delineated.
    """
    found: _References = []
    for kind in wanted.pairs:
        source, below = PREDICTION_PAIRS[kind]
        array = store.arrays.get(f"{wanted.grid}/{below}")
        for record in array.sources if array else ():
            labels: Mapping[str, Any] = record.labels
            if source == CLINICAL and record.voxels == 0:
                continue
            if array is not None and labels["structure"] == structure:
                rest = {k: v for k, v in labels.items() if k != "structure"}
                found.append((kind, array.spec.path, Segmentation(source, **rest)))
    return found


def _rows(
    reader: StoreReader,
    structure: str,
    mask: Mask,
    name: str,
    references: _References,
    wanted: Wanted,
) -> Iterator[Row]:
    spacing_mm = box_spacing(reader.metadata, wanted.grid)
    parts = [_cropped(mask)]
    parts += [_cropped(read_segmentation(reader, structure, s, path)) for _, path, s in references]
    whole = joint_box([box for box, _ in parts])
    predicted, *others = (Drawn(placed(part, box, whole), spacing_mm) for box, part in parts)
    b = Segmentation(name)
    for (kind, _, a), drawn in zip(references, others, strict=True):
        measured = compare_drawn(drawn, predicted, wanted.how.tolerances_mm)
        yield {"pair": kind} | a.columns("a") | b.columns("b") | measured


def _cropped(mask: Mask) -> tuple[Any, Mask]:
    box = bounding_box(mask)
    return box, mask[box].copy() if box else mask[:0]
