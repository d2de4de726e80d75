"""Read the slices of a patient's preview, with their positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation

from lundprobe_zarr.geometry.affine import is_aligned, ras_to_lps, spacing
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, VolumeArray
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.files import Label
from lundprobe_zarr.vocabulary.names import STRUCTURES

Pixels = npt.NDArray[Any]
#: One slice per view, by the view's name; each is (rows, columns) of the view.
Planes = dict[str, Pixels]
Labels = Mapping[str, Label]

#: The views pass through the centroid of this structure.
TARGET = "CTVT_427"


@dataclass(frozen=True)
class View:
    """One of the three views, in radiological convention.

    `normal`, `rows` and `columns` name patient axes (LPS): the slice is `rows` by `columns`, at
    one position along `normal`. `letters` are the patient's sides at left, right, top and bottom.
    """

    name: str
    normal: str
    rows: str
    columns: str
    letters: str

    @property
    def rows_ascend_downwards(self) -> bool:
        """Whether the row coordinate increases downwards: y (posterior) does, z does not."""
        return self.rows == "y"


AXIAL = View("axial", "z", "y", "x", "RLAP")
CORONAL = View("coronal", "y", "z", "x", "RLSI")
SAGITTAL = View("sagittal", "x", "z", "y", "APSI")
VIEWS = (AXIAL, CORONAL, SAGITTAL)


@dataclass(frozen=True)
class Frame:
    """Positions of a grid's voxels along the patient's axes `z`, `y`, `x`.

    `positions` are voxel centres, mm, LPS; `steps` are the signed distances of neighbours, mm;
    `order` is the array axis of each patient axis. An `oblique` grid is not parallel to the
    patient's axes: each of its axes has the name of the nearest one, and positions are index times
    voxel size.
    """

    positions: dict[str, npt.NDArray[np.float64]]
    steps: dict[str, float]
    order: dict[str, int]
    oblique: bool

    def middle(self) -> dict[str, int]:
        """Return the index of the voxel at the volume's centre, by axis."""
        return {axis: len(values) // 2 for axis, values in self.positions.items()}

    def shape(self, view: View) -> tuple[int, int]:
        """Return the number of rows and columns of a view's slice."""
        return len(self.positions[view.rows]), len(self.positions[view.columns])

    def extent(self, axis: str) -> tuple[float, float]:
        """Return the outer edges (mm) of the first and the last voxel along an axis."""
        half = self.steps[axis] / 2
        return float(self.positions[axis][0] - half), float(self.positions[axis][-1] + half)


def frame_of(affine: npt.ArrayLike, shape: Sequence[int]) -> Frame:
    """Return a grid's frame: `affine` (4, 4), voxel (i, j, k) -> mm, RAS; `shape` (z, y, x)."""
    lps, sizes = ras_to_lps(affine), spacing(affine)
    oblique = not is_aligned(affine)
    frame = Frame({}, {}, {}, oblique)
    for column, (row, sign) in enumerate(io_orientation(lps)):
        axis, array_axis = "xyz"[int(row)], 2 - column
        step = float(sign * sizes[column])
        origin = 0.0 if oblique else lps[int(row), 3]
        frame.positions[axis] = origin + step * np.arange(shape[array_axis], dtype=np.float64)
        frame.steps[axis], frame.order[axis] = step, array_axis
    return frame


@dataclass(frozen=True)
class Consensus:
    """Axial slices (y, x) that only extended patients have.

    `ensemble` (bool) and `uncertainty` (unit 1) are by structure; `observers` (bool) by structure,
    step and observer. Missing items have no entry.
    """

    ensemble: dict[str, Pixels]
    uncertainty: dict[str, Pixels]
    observers: dict[tuple[str, int, str], Pixels]


@dataclass(frozen=True)
class Preview:
    """The contents of a preview, on the MRI grid.

    `index` is the voxel of the views, by axis. It is the CTV's centroid if `on_target`, otherwise
    the volume's centre. `t2w` and `sct` are grey values (1, HU), `dose` is in Gy, and `masks` are
    booleans by clinical structure. Each is empty if the patient has none.
    """

    patient_id: str
    part: str
    protocol: str
    synthetic: bool
    frame: Frame
    index: dict[str, int]
    on_target: bool
    t2w: Planes
    sct: Planes
    dose: Planes
    dose_max_gy: float | None
    masks: dict[str, Planes]
    consensus: Consensus | None = field(default=None)

    @property
    def missing(self) -> list[str]:
        """Clinical structures that the patient lacks, in the canonical order."""
        return [s for s in STRUCTURES if s not in self.masks]


def read_preview(location: Location, patient_id: str) -> Preview:
    """Read the slices of a preview. Only the CTV's mask is read as a whole volume.

    Raises `DamagedStoreError` if the store is missing or a chunk that is read fails its checksum.
    """
    store = open_store(location, patient_id)
    frame = frame_of(store.groups["mri"]["affine"], store.groups["mri"]["shape"])
    index = _centroid(location, store, frame)
    reader = _Reader(location, store, frame, index or frame.middle())
    plan = store.arrays.get("dose/dose")
    return Preview(
        patient_id=store.patient_id,
        part=str(store.attributes["part"]),
        protocol=str(store.attributes["protocol"]),
        synthetic=bool(store.attributes.get("synthetic", False)),
        frame=frame,
        index=reader.index,
        on_target=index is not None,
        t2w=reader.planes("mri/image", {"modality": "T2w"}),
        sct=reader.planes("mri/image", {"modality": "sCT"}),
        dose=reader.planes("mri/dose", {}),
        dose_max_gy=plan.sources[0].range[1] if plan and plan.sources[0].range else None,
        masks=reader.by_structure("mri/clinical/mask", VIEWS),
        consensus=_consensus(reader) if store.attributes["part"] == "extended" else None,
    )


@dataclass(frozen=True)
class Slice:
    """The axial slice of the MRI grid nearest to `index` voxels, with clinical masks.

    `t2w` (rows, columns) is empty without T2w; `masks` are booleans by structure.
    """

    frame: Frame
    t2w: Pixels
    masks: dict[str, Pixels]


def read_slice(location: Location, patient_id: str, centre: Sequence[float] | None) -> Slice:
    """Read the axial slice through the voxel `centre` (z, y, x); None: the volume's middle.

    No volume is read whole. Raises as `read_preview` does.
    """
    store = open_store(location, patient_id)
    frame = frame_of(store.groups["mri"]["affine"], store.groups["mri"]["shape"])
    index = frame.middle()
    if centre is not None:
        index = {axis: round(centre[k]) for axis, k in frame.order.items()}
    reader = _Reader(location, store, frame, index)
    t2w = reader.planes("mri/image", {"modality": "T2w"}, (AXIAL,)).get(
        AXIAL.name, np.empty((0, 0))
    )
    return Slice(frame, t2w, reader.axial("mri/clinical/mask"))


def _centroid(location: Location, store: StoreMetadata, frame: Frame) -> dict[str, int] | None:
    """Return the voxel nearest the CTV's centroid, by axis; None if it is missing or empty."""
    found = _find(store, "mri/clinical/mask", {"structure": TARGET})
    if found is None:
        return None
    volume = StoreReader(location, store).volume(*found)
    total = int(np.count_nonzero(volume))
    if not total:
        return None
    return {a: round(_mean_index(volume, k, total)) for a, k in frame.order.items()}


def _mean_index(mask: Pixels, axis: int, total: int) -> float:
    others = tuple(k for k in range(mask.ndim) if k != axis)
    return float(np.count_nonzero(mask, axis=others) @ np.arange(mask.shape[axis]) / total)


def _find(
    store: StoreMetadata, path: str, labels: Labels
) -> tuple[VolumeArray, SourceRecord] | None:
    array = store.arrays.get(path)
    records = array.sources if array else ()
    record = next((r for r in records if r.labels == labels), None)
    return (array, record) if array and record else None


def _consensus(reader: _Reader) -> Consensus:
    array = reader.store.arrays.get("mri/observers/mask")
    return Consensus(
        ensemble=reader.axial("mri/nnunet/mask"),
        uncertainty=reader.axial("mri/nnunet/uncertainty"),
        observers={
            _observer_key(r): reader.planes("mri/observers/mask", r.labels, (AXIAL,))[AXIAL.name]
            for r in (array.sources if array else ())
        },
    )


def _observer_key(record: SourceRecord) -> tuple[str, int, str]:
    labels = record.labels
    return str(labels["structure"]), int(labels["step"]), str(labels["observer"])


class _Reader:
    """Reads slices through one voxel of a store and checks the checksums of their chunks."""

    def __init__(
        self, location: Location, store: StoreMetadata, frame: Frame, index: dict[str, int]
    ) -> None:
        self.location, self.store, self.frame, self.index = location, store, frame, index
        self._reader = StoreReader(location, store)

    def by_structure(self, path: str, views: Sequence[View]) -> dict[str, Planes]:
        """Return slices of every structure of an array whose only label is `structure`."""
        array = self.store.arrays.get(path)
        labels = [r.labels for r in array.sources] if array else []
        names = sorted((str(each["structure"]) for each in labels), key=STRUCTURES.index)
        return {name: self.planes(path, {"structure": name}, views) for name in names}

    def axial(self, path: str) -> dict[str, Pixels]:
        """Return only the axial slice of every structure of an array."""
        return {s: p[AXIAL.name] for s, p in self.by_structure(path, (AXIAL,)).items()}

    def planes(self, path: str, labels: Labels, views: Sequence[View] = VIEWS) -> Planes:
        """Return the slices of one volume, one per view; empty if there is no such volume.

        Raises `DamagedStoreError` if the data are missing or damaged.
        """
        if _find(self.store, path, labels) is None:
            return {}
        return {view.name: self._plane(path, labels, view) for view in views}

    def _plane(self, path: str, labels: Labels, view: View) -> Pixels:
        order = self.frame.order
        normal, at = order[view.normal], self.index[view.normal]
        box = [slice(None)] * 3
        box[normal] = slice(at, at + 1)
        (volume,) = self._reader.read([(path, labels)], box)
        pixels = volume.squeeze(normal)
        return pixels if order[view.rows] < order[view.columns] else pixels.T
