"""Plan the arrays of a patient's store and the files that fill them, without reading voxels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from lundprobe_zarr.conversion.source.inventory import PatientSource, SourceEntry
from lundprobe_zarr.schema.layout import ARRAY_SPECS, LABEL_ORDER, ArraySpec
from lundprobe_zarr.vocabulary.files import Label


@dataclass(frozen=True)
class ArrayPlan:
    """One array: its spec, the labels of each label dimension, and the files that fill it."""

    spec: ArraySpec
    labels: dict[str, tuple[Label, ...]]
    entries: tuple[SourceEntry, ...]

    @property
    def is_dose(self) -> bool:
        """Whether it is the dose of its grid."""
        return self.spec.variable == "dose"

    def index(self, labels: dict[str, Label]) -> tuple[int, ...]:
        """Return the index of a labelled slice in the array."""
        return tuple(self.labels[dim].index(labels[dim]) for dim in self.spec.label_dims)

    def present(self) -> dict[tuple[int, ...], bool]:
        """Return for every slice of the block whether a file fills it."""
        filled = {self.index(e.record.labels) for e in self.entries}
        indices = product(*(range(len(self.labels[d])) for d in self.spec.label_dims))
        return {index: index in filled for index in indices}


def plan_store(patient: PatientSource) -> tuple[ArrayPlan, ...]:
    """Return the arrays of a patient's store in canonical order, with labels of existing files.

    Arrays of one group share their label coordinates. A label exists if any of them has it.
    """
    plans = []
    for path, spec in ARRAY_SPECS.items():
        entries = [e for e in patient.entries if _array_path(e) == path]
        if entries:
            group = [e for e in patient.entries if e.record.group == spec.group]
            plans.append(ArrayPlan(spec, _labels(spec, group), _ordered(spec, entries)))
    return tuple(plans)


def _array_path(entry: SourceEntry) -> str:
    return f"{entry.record.group}/{entry.record.variable}"


def _labels(spec: ArraySpec, group: Iterable[SourceEntry]) -> dict[str, tuple[Label, ...]]:
    existing = [e.record.labels for e in group]
    return {
        dim: tuple(v for v in LABEL_ORDER[dim] if any(e.get(dim) == v for e in existing))
        for dim in spec.label_dims
    }


def _ordered(spec: ArraySpec, entries: Sequence[SourceEntry]) -> tuple[SourceEntry, ...]:
    def position(entry: SourceEntry) -> tuple[int, ...]:
        labels = entry.record.labels
        return tuple(LABEL_ORDER[dim].index(labels[dim]) for dim in spec.label_dims)

    return tuple(sorted(entries, key=position))
