"""The doses of segmentations, from the `dvh` table or from voxels, patient by patient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.cohort.core import Cohort
from lundprobe_zarr.cohort.patient import Patient
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.geometry.affine import voxel_volume_cc
from lundprobe_zarr.measures.coverage import Covered, covered
from lundprobe_zarr.measures.dose_volume import ascending, doses
from lundprobe_zarr.measures.histogram import BinnedDoses, VoxelDoses, with_uncovered
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.measures.metrics import BODY
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.schema.tables import DVH, SEGMENTATION_COLUMNS
from lundprobe_zarr.stores.metadata import VolumeArray
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import protocol_of
from lundprobe_zarr.vocabulary.suggest import require_structure, unknown_label

if TYPE_CHECKING:
    from lundprobe_zarr.schema.records import SourceRecord

Method = Literal["voxels", "table"]
Outside = Literal["leave out", "zero"]
MaskGrid = Literal["mri", "sct"]
CLINICAL = "clinical"
#: What may be asked for, as the structures table calls it.
SOURCES = tuple(dict.fromkeys(SEGMENTATION_SOURCES.values()))
#: The labels of a segmentation besides its structure.
_LABELS = ("fold", "step", "observer")


_OF_EXTENDED = (
    "networks and observers drew on extended patients: cohort.where(\"part = 'extended'\")"
)


@dataclass(frozen=True)
class Wanted:
    """Which segmentations, and how their doses are found. `structures` None: all there are."""

    structures: tuple[str, ...] | None
    sources: tuple[str, ...]
    grid: str
    method: str
    outside: str

    def includes(self, source: str, structure: str) -> bool:
        """Whether a segmentation of the grid is wanted."""
        named = self.structures is None or structure in self.structures
        return named and source in self.sources


@dataclass(frozen=True)
class Segmentation:
    """A segmentation with the doses of its counted voxels; None where they are not known."""

    key: Mapping[str, Any]
    volume_cc: float
    covered_pct: float | None
    doses: VoxelDoses | BinnedDoses | None

    @property
    def unknown_because(self) -> str:
        """Why there is no dose; empty if there is one."""
        if not self.volume_cc:
            return "no voxels"
        if self.doses is None:
            return f"no dose on the {self.key['grid']} grid, or one that is no number"
        return "" if self.doses.voxels else "outside the planning dose grid"


class OnePatient(NamedTuple):
    """A patient's wanted segmentations, one after another, and BODY for their metrics."""

    patient_id: str
    body: VoxelDoses | BinnedDoses | None
    segmentations: Iterable[Segmentation]


def wanted(
    structures: str | Sequence[str] | None,
    sources: str | Sequence[str],
    grid: str,
    method: str,
    outside: str,
) -> Wanted:
    """Check what is asked for.

    Raises `UnknownLabelError` for an unknown structure or source, and `UsageError` for another grid
    than `mri` and `sct`, for sources that the grid does not have, and for other options.
    """
    for name, value, known in (
        ("grid", grid, get_args(MaskGrid)),
        ("method", method, get_args(Method)),
        ("outside", outside, get_args(Outside)),
    ):
        if value not in known:
            raise UsageError(f"{name}={value!r}", expected=" or ".join(map(repr, known)))
    chosen = None if structures is None else _listed("structures", structures)
    for structure in chosen or ():
        require_structure(structure)
    named = _listed("sources", sources)
    for source in named:
        if source not in SOURCES:
            raise unknown_label("source", source, SOURCES)
    if grid == "sct" and named != (CLINICAL,):
        other = next(s for s in named if s != CLINICAL)
        raise UsageError(
            f"sources={list(named)} on the sct grid, which has no {other} masks",
            expected="clinical masks alone there",
            remedy="choose the mri grid: networks and observers drew on it",
        )
    return Wanted(chosen, named, grid, method, outside)


def _listed(name: str, values: str | Sequence[str]) -> tuple[str, ...]:
    listed = (values,) if isinstance(values, str) else tuple(values)
    if not listed:
        raise UsageError(f"{name}={values!r}", expected="at least one")
    return tuple(dict.fromkeys(listed))


def require_patients(function: str, given: object) -> None:
    """Raise `UsageError` unless `given` is a patient or a cohort of one or more."""
    if not isinstance(given, (Patient, Cohort)):
        raise UsageError(f"{function} was given {given!r}", expected="a patient or a cohort")
    if isinstance(given, Cohort) and not len(given):
        raise UsageError(
            "the cohort has no patients", expected="one or more", remedy="widen its predicate"
        )


def of_patients(
    patients: Patient | Cohort, want: Wanted, with_body: bool = False
) -> Iterator[OnePatient]:
    """Yield the segmentations of each patient who has any, in the order of the cohort.

    From voxels, one patient's dose and one structure's are in memory at a time, with BODY if
    wanted: use each before the next. Raises `DatasetError` if the table is not there,
    `DamagedStoreError` if a voxel cannot be read.
    """
    if want.method == "table":
        yield from _of_table(patients, want, with_body)
        return
    for patient in [patients] if isinstance(patients, Patient) else patients:
        yield _of_voxels(patient, want, with_body)


def missing(patients: Patient | Cohort, structure: str, want: Wanted) -> MissingStructureError:
    """Return the error for a structure that no patient has."""
    what = f"{' or '.join(want.sources)} {structure} on the {want.grid} grid"
    if isinstance(patients, Patient):
        return MissingStructureError(
            f"patient {patients.patient_id} lacks {what}", patient=patients.patient_id
        )
    return MissingStructureError(f"none of the {len(patients)} patients has {what}")


def without_any(patients: Patient | Cohort, want: Wanted) -> UnknownLabelError:
    """Return the error for patients without a wanted segmentation."""
    who = (
        f"patient {patients.patient_id} has"
        if isinstance(patients, Patient)
        else f"the {len(patients)} patients of the cohort have"
    )
    return UnknownLabelError(
        f"{who} no {' or '.join(want.sources)} masks on the {want.grid} grid",
        remedy=None if CLINICAL in want.sources else _OF_EXTENDED,
    )


def _of_table(patients: Patient | Cohort, want: Wanted, with_body: bool) -> Iterator[OnePatient]:
    if isinstance(patients, Patient):
        table = patients.dataset.patient_rows(DVH.name, patients.patient_id)
    else:
        table = patients.table(DVH.name)
    table = table.filter(pc.equal(table.column("grid"), want.grid)).combine_chunks()
    ids = table.column("patient_id").to_pylist()
    starts = [n for n, i in enumerate(ids) if not n or ids[n - 1] != i]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        rows = table.slice(start, stop - start)
        columns = zip(*(rows.column(c).to_pylist() for c in ("source", "structure")), strict=True)
        numbered = list(enumerate(columns))
        body = next((n for n, c in numbered if c == (CLINICAL, BODY)), None) if with_body else None
        yield OnePatient(
            ids[start],
            None if body is None else _of_row(rows, body, want).doses,
            [_of_row(rows, n, want) for n, c in numbered if want.includes(*c)],
        )


def _of_row(rows: pa.Table, number: int, want: Wanted) -> Segmentation:
    names = (*SEGMENTATION_COLUMNS, "volume_cc", "voxel_cc", "covered_pct")
    row = {name: rows.column(name)[number].as_py() for name in names}
    volumes = rows.column("cumulative_cc")[number].values
    share, volume_cc = row["covered_pct"], row["volume_cc"]
    known: BinnedDoses | None = None
    if volumes is not None:
        counted = volume_cc if share is None else volume_cc * share / 100
        known = BinnedDoses.of_volumes(volumes.to_numpy(), row["voxel_cc"], counted)
    key = {name: row[name] for name in SEGMENTATION_COLUMNS}
    voxels = round(volume_cc / row["voxel_cc"])
    return _segmentation(key, voxels, row["voxel_cc"], share, known, want)


def _segmentation(
    key: Mapping[str, Any],
    voxels: int,
    voxel_cc: float,
    share: float | None,
    known: VoxelDoses | BinnedDoses | None,
    want: Wanted,
) -> Segmentation:
    if known is not None and want.outside == "zero":
        known = with_uncovered(known, voxels - known.voxels)
    return Segmentation(key, voxels * voxel_cc, share, known)


def _of_voxels(patient: Patient, want: Wanted, with_body: bool) -> OnePatient:
    store = patient.dataset.store(patient.patient_id)
    reader = StoreReader(patient.location, store)
    masks = [
        (array, record)
        for array, record, _ in store.shards()
        if array.spec.path in SEGMENTATION_SOURCES and array.spec.grid == want.grid
    ]
    chosen = [m for m in masks if want.includes(*_named(*m))]
    read = _Voxels(reader, want)
    body = None
    if with_body and chosen:
        found = [m for m in masks if _named(*m) == (CLINICAL, BODY)]
        body = read.segmentation(*found[0]).doses if found else None
    return OnePatient(patient.patient_id, body, (read.segmentation(*m) for m in chosen))


def _named(array: VolumeArray, record: SourceRecord) -> tuple[str, str]:
    return SEGMENTATION_SOURCES[array.spec.path], str(record.labels["structure"])


class _Voxels:
    """Reads a patient's masks, and the dose of their grid with the first."""

    def __init__(self, reader: StoreReader, want: Wanted) -> None:
        self._reader = reader
        self._want = want
        self._dose: Any = None

    def segmentation(self, array: VolumeArray, record: SourceRecord) -> Segmentation:
        """Read a mask and find the doses of its covered voxels."""
        store, grid = self._reader.metadata, self._reader.metadata.grid(self._want.grid)
        assert grid is not None  # its masks are read
        mask = self._reader.volume(array, record)
        box = bounding_box(mask)
        voxels, share, known = 0, None, None
        voxel_cc = voxel_volume_cc(grid.affine)
        if box is not None:
            inside = Covered(box, mask[box])
            voxels = inside.voxels
            if (planned := store.grid("dose")) is not None:
                inside = covered(mask, box, grid, planned)
                share = 100.0 * inside.voxels / voxels
            values = None if self._volume() is None else ascending(doses(self._dose, inside))
            known = None if values is None else VoxelDoses(values, voxel_cc)
        source, structure = _named(array, record)
        labels = {name: record.labels.get(name) for name in _LABELS}
        key = {
            "patient_id": store.patient_id,
            "part": store.attributes["part"],
            "protocol": protocol_of(store.patient_id),
            "grid": self._want.grid,
            "source": source,
            "structure": structure,
        } | labels
        return _segmentation(key, voxels, voxel_cc, share, known, self._want)

    def _volume(self) -> Any:
        """The dose (z, y, x), Gy; None without one."""
        array = self._reader.metadata.arrays.get(f"{self._want.grid}/dose")
        if self._dose is None and array is not None:
            self._dose = self._reader.volume(array, array.sources[0])
        return self._dose
