"""Check the tables measured on voxels against the stores and each other.

`structures` and `dvh` must have one row for every segmentation of a store and no other. `slices`
and `foreground` must count the same voxels. `intensity` must have a row for every image, of the
voxels of BODY. The deep check counts voxels in the masks. Comparisons must have every pair of a
store, with the same volumes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.dataset.opening import read_table
from lundprobe_zarr.dataset.rows import Row, RowsByPatient
from lundprobe_zarr.integrity.compared import COMPARED_COLUMNS, compared_findings
from lundprobe_zarr.measures.masks import mask_sha256
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import DVH, INTENSITY
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, VolumeArray
from lundprobe_zarr.vocabulary.names import STRUCTURES

_LABELS = ("structure", "fold", "step", "observer")
_KEY = ("grid", "source", *_LABELS)
_MEASURED = ("voxels", "bbox_start", "bbox_stop")
_COLUMNS = {
    "structures": (*_KEY, *_MEASURED, "volume_cc"),
    "dvh": (*_KEY, "volume_cc"),
    "slices": ("z_index", *(f"voxels_{s}" for s in STRUCTURES)),
    "foreground": ("structure", "total"),
    INTENSITY.name: ("grid", "modality", "voxels"),
}
_REMEDY = "run finalise --rebuild"
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Measured:
    """One patient's rows of the measured tables; None for tables that the dataset lacks."""

    structures: list[Row]
    slices: list[Row]
    foreground: list[Row]
    dvh: list[Row] | None = None
    intensity: list[Row] | None = None
    agreement: list[Row] | None = None
    uncertainty: list[Row] | None = None

    def row(self, array: VolumeArray, record: SourceRecord) -> Row | None:
        """Return the row of a source file's segmentation; None if there is none."""
        key = _key(array, record)
        return next((r for r in self.structures if _key_of_row(r) == key), None)


def _key(array: VolumeArray, record: SourceRecord) -> Key:
    source = SEGMENTATION_SOURCES.get(array.spec.path)
    return (array.spec.grid, source, *(record.labels.get(label) for label in _LABELS))


def _key_of_row(row: Row) -> Key:
    return tuple(row[name] for name in _KEY)


class AllMeasured:
    """Every patient's measured rows."""

    def __init__(self, tables: dict[str, RowsByPatient]) -> None:
        self._tables = tables

    @property
    def patients(self) -> set[str]:
        """Patients with rows."""
        return {patient for rows in self._tables.values() for patient in rows}

    def of(self, patient_id: str) -> Measured:
        """Return one patient's rows, which may be empty."""
        return Measured(**{name: rows.of(patient_id) for name, rows in self._tables.items()})


def read_measured(location: Location, manifest: Manifest) -> AllMeasured:
    """Read every patient's measured rows; raise `DatasetError` if a table cannot be read."""

    def read(name: str) -> RowsByPatient:
        wanted = ["patient_id", *(_COLUMNS | COMPARED_COLUMNS)[name]]
        if name == "structures" and manifest.schema_version > 1:
            wanted.append("mask_sha256")
        return RowsByPatient(read_table(location, manifest, name, wanted).select(wanted))

    optional = (DVH.name, INTENSITY.name, *COMPARED_COLUMNS)
    names = [n for n in (*_COLUMNS, *COMPARED_COLUMNS) if n not in optional or n in manifest.tables]
    return AllMeasured({name: read(name) for name in names})


def table_findings(store: StoreMetadata, measured: Measured) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a patient's measured rows, by table; reads no voxel."""
    segmentations = [(a, r) for a, r, _ in store.shards() if a.spec.path in SEGMENTATION_SOURCES]
    expected = {_key(array, record) for array, record in segmentations}
    found = [_key_of_row(row) for row in measured.structures]
    for key in sorted(expected.difference(found), key=str):
        yield "structures", f"no row of {_named(key)}, which its store has; {_REMEDY}"
    for key in sorted(set(found) - expected, key=str):
        yield "structures", f"a row of {_named(key)}, which its store lacks; {_REMEDY}"
    if len(set(found)) < len(found):
        yield "structures", f"{len(found) - len(set(found))} rows too many; {_REMEDY}"
    if measured.dvh is not None:
        volumes = {_key_of_row(row): row["volume_cc"] for row in measured.structures}
        histograms = {_key_of_row(row): row["volume_cc"] for row in measured.dvh}
        if volumes != histograms or len(histograms) < len(measured.dvh):
            yield "dvh", f"other segmentations or volumes than structures has; {_REMEDY}"
    yield from _counts(store, measured)
    if measured.intensity is not None:
        yield from _images(store, measured.structures, measured.intensity)
    compared = {name: getattr(measured, name) for name in COMPARED_COLUMNS}
    yield from compared_findings(store, compared, measured.structures)


def _named(key: Key) -> str:
    return " ".join(str(part) for part in key if part is not None)


def _counts(store: StoreMetadata, measured: Measured) -> Iterator[tuple[str, str]]:
    """Compare slices and foreground with the clinical rows of the MRI grid."""
    clinical = {
        row["structure"]: row["voxels"]
        for row in measured.structures
        if (row["grid"], row["source"]) == ("mri", "clinical")
    }
    depth = store.groups["mri"]["shape"][0]
    if [row["z_index"] for row in measured.slices] != list(range(depth)):
        yield "slices", f"{len(measured.slices)} rows; expected one for each of {depth}; {_REMEDY}"
    for structure in STRUCTURES:
        counts = [row[f"voxels_{structure}"] for row in measured.slices]
        summed = None if any(c is None for c in counts) else sum(counts)
        if summed != clinical.get(structure):
            yield (
                "slices",
                f"{summed} voxels of {structure}; structures has {clinical.get(structure)}; "
                f"{_REMEDY}",
            )
    totals = {row["structure"]: row["total"] for row in measured.foreground}
    if totals != clinical or len(totals) < len(measured.foreground):
        yield "foreground", f"totals {totals}; structures has {clinical}; {_REMEDY}"


def _images(
    store: StoreMetadata, structures: list[Row], intensity: list[Row]
) -> Iterator[tuple[str, str]]:
    """Compare rows of `intensity` with the images of the store and the voxels of BODY."""
    images = [
        (array.spec.grid, record.labels["modality"])
        for array, record, _ in store.shards()
        if array.spec.variable == "image"
    ]
    found = [(row["grid"], row["modality"]) for row in intensity]
    if sorted(found) != sorted(images):
        yield "intensity", f"rows of {sorted(found)}; its store has {sorted(images)}; {_REMEDY}"
    body = {
        row["grid"]: row["voxels"]
        for row in structures
        if (row["source"], row["structure"]) == ("clinical", "BODY")
    }
    for row in intensity:
        if row["voxels"] not in (None, body.get(row["grid"])):
            yield (
                "intensity",
                f"{row['voxels']} voxels of BODY on the {row['grid']} grid; structures has "
                f"{body.get(row['grid'])}; {_REMEDY}",
            )


def mask_finding(row: Row | None, mask: npt.NDArray[np.bool_]) -> str | None:
    """Return how a mask (z, y, x) differs from its row of the structures table, or None."""
    if row is None:  # reported by `table_findings`
        return None
    axes = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    is_empty = not len(axes[0])
    counted: dict[str, Any] = {
        "voxels": int(np.count_nonzero(mask)),
        "bbox_start": None if is_empty else [int(a[0]) for a in axes],
        "bbox_stop": None if is_empty else [int(a[-1]) + 1 for a in axes],
    }
    recorded = {name: row[name] for name in _MEASURED}
    if row.get("mask_sha256") is not None:  # schema 1 has none
        z, y, x = ((0, 0) if is_empty else (int(a[0]), int(a[-1]) + 1) for a in axes)
        box = None if is_empty else (slice(*z), slice(*y), slice(*x))
        counted["mask_sha256"] = mask_sha256(mask, box)
        recorded["mask_sha256"] = row["mask_sha256"]
    if counted == recorded:
        return None
    return f"the structures table says {recorded}; its mask has {counted}; {_REMEDY}"
