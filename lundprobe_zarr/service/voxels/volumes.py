"""The volumes of patients that clients look at: opened stores, decoded chunks, one request's way.

`routes` of planes, overlays and patients are made with `about_patient`.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lundprobe_zarr.dataset.predictions import StoredPredictions
from lundprobe_zarr.errors import (
    ChangedStoreError,
    DamagedStoreError,
    DatasetError,
    UnknownLabelError,
    UsageError,
    sentence,
)
from lundprobe_zarr.geometry.lattice import Box, Grid
from lundprobe_zarr.geometry.plane import axis_number, nearest_plane
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.core import MAIN, caller_of, service_of
from lundprobe_zarr.service.datasets.published import Revision
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.http.cached import Kept
from lundprobe_zarr.service.http.query import Query, invalid
from lundprobe_zarr.service.settings import Settings
from lundprobe_zarr.service.voxels.decoding import Decoding
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import VolumeArray
from lundprobe_zarr.stores.prediction import StoredPrediction, prediction_spec
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tiles import Tiles
from lundprobe_zarr.vocabulary.files import Label
from lundprobe_zarr.vocabulary.suggest import suggestion

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Seconds for which values at points, asked for in quick succession, take predictions as they were.
_FRESH_SECONDS = 2.0
#: Name of the setting, among the service's `options`, of the memory for decoded chunks, MB.
CACHE_OPTION = "plane_cache_mb"
DEFAULT_CACHE_MB = 512
#: Patients kept open, some 200 kB each.
_MOST_PATIENTS = 64
_PREFIX = "/api/v1/datasets/{owner}/{name}/patients/{patient}"
#: Labels of a segmentation besides its structure.
SEGMENTATION_LABELS = ("fold", "step", "observer")
_COLUMNS = ("patient_id", "grid", "source", "structure", *SEGMENTATION_LABELS)
_MEASURED = ("voxels", "volume_cc", "bbox_start", "bbox_stop", "centroid_mm")
_ARRAYS = {
    "clinical": "clinical/mask",
    "nnunet": "nnunet/mask",
    "nnunet_fold": "nnunet/fold_mask",
    "observer": "observers/mask",
}
#: Sources of segmentations, as the structures table calls them.
SOURCES = tuple(_ARRAYS)
#: What stands before the name of a prediction that is a source.
PREDICTED = "prediction:"
#: Name of the setting, among the service's `options`, of the place of predictions.
PREDICTIONS_OPTION = "predictions"

_T = TypeVar("_T")
Labels = Mapping[str, Label]
Voxels = npt.NDArray[Any]


@dataclass(frozen=True)
class Segmentation:
    """A segmentation by its row of the structures table; `box` is None if it has no voxels."""

    grid: str
    source: str
    labels: Labels
    voxels: int
    volume_cc: float
    box: Box | None
    centroid_mm: tuple[float, float, float] | None

    @property
    def array(self) -> str:
        """Path of its array in the store; of a prediction with its source before it."""
        if self.source.startswith(PREDICTED):
            return f"{self.source}/{prediction_spec(self.grid).path}"
        return f"{self.grid}/{_ARRAYS[self.source]}"

    @property
    def structure(self) -> str:
        """The structure."""
        return str(self.labels["structure"])

    def named(self) -> dict[str, Any]:
        """Return what tells it from others, for answers."""
        return {"source": self.source, **self.labels}


class OpenPatient:
    """A patient at one revision: the store's metadata, and voxels through the cache."""

    def __init__(
        self, revision: Revision, patient_id: str, tiles: Tiles, place: Location | None = None
    ) -> None:
        self.revision = revision
        self.patient_id = patient_id
        self.tiles = tiles
        self.reader = StoreReader.open(revision.dataset.location, patient_id)
        self.store = self.reader.metadata
        self._place = place
        self._lock = threading.Lock()
        self._predicted: dict[str, tuple[StoreReader, StoredPrediction]] = {}
        self._unshown: dict[str, str] = {}
        self._looked = time.monotonic()
        self.look_for_predictions()

    @property
    def unshown(self) -> list[str]:
        """Predictions of this patient that cannot be shown, and why."""
        return list(self._unshown.values())

    def look_for_predictions(self) -> None:
        """Open what is there now of this patient at the place of predictions, by metadata."""
        if self._place is None:
            return
        try:
            there = [f"{PREDICTED}{name}" for name in StoredPredictions(self._place).names]
        except DatasetError as error:
            _LOG.warning("%s", error)
            self._unshown = {"": "the predictions cannot be listed now"}
            return
        with self._lock:
            self._predicted = {s: p for s, p in self._predicted.items() if s in there}
            self._unshown = {s: why for s, why in self._unshown.items() if s in there}
        self.look_at(there)

    def look_again(self) -> None:
        """Look at the predictions that are known, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._looked > _FRESH_SECONDS:
            self._looked = now
            self.look_at(self._predicted)

    def look_at(self, sources: Iterable[str]) -> None:
        """Open what is there now of those of some sources that are predictions.

        One may have been written or replaced since, and another process have told the client.
        """
        for source in sources:
            if self._place is None or not source.startswith(PREDICTED):
                continue
            opened, why = self._looked_at(self._place, source.removeprefix(PREDICTED))
            with self._lock:  # new dicts, as other threads go through the old ones
                self._predicted = _changed(self._predicted, source, opened)
                self._unshown = _changed(self._unshown, source, why)

    def _looked_at(
        self, place: Location, name: str
    ) -> tuple[tuple[StoreReader, StoredPrediction] | None, str | None]:
        """Return a prediction of this patient, or None and, if there is one, why not."""
        there = StoredPredictions(place)
        try:
            found = there.stored(name, self.store)
        except DatasetError as error:
            _LOG.warning("%s", error)
            return None, f"prediction {name}: {sentence(error, place=False)}"
        if found is None:
            return None, None
        return (StoreReader(there.at(name), found.metadata), found), None

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that segmentations may have, predictions of this patient among them."""
        return (*SOURCES, *self._predicted)

    def reader_of(self, path: str) -> tuple[StoreReader, str]:
        """Return the reader of an array, and the array's path in its store."""
        source, _, rest = path.partition("/")
        predicted = self._predicted.get(source)
        return (self.reader, path) if predicted is None else (predicted[0], rest)

    def grid(self, name: str) -> Grid:
        """Return a grid. Raises `UnknownLabelError` if the patient does not have it."""
        there = self.grids
        if name not in there:
            raise UnknownLabelError(
                f"patient {self.patient_id} has no {name!r} grid", remedy=suggestion(name, there)
            )
        return there[name]

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """The grids that the patient has, by name."""
        return {
            name: Grid(np.array(group["affine"], dtype=np.float64), tuple(group["shape"]))
            for name, group in self.store.groups.items()
            if "affine" in group
        }

    def volume(self, path: str, labels: Labels) -> tuple[VolumeArray, tuple[int, ...]]:
        """Return an array and the place of one volume in it.

        Raises `UnknownLabelError` for an array, a label or a volume that the patient does not have,
        `UsageError` if a label is missing or too many.
        """
        reader, path = self.reader_of(path)
        arrays = reader.metadata.arrays
        if path not in arrays:
            raise UnknownLabelError(
                f"patient {self.patient_id} has no array {path!r}", remedy=suggestion(path, arrays)
            )
        array = arrays[path]
        index = reader.index(array, labels)
        if not reader.holds(path, index):
            named = ", ".join(f"{k} {v}" for k, v in labels.items())
            raise UnknownLabelError(f"patient {self.patient_id} has no {path} of {named}")
        return array, index

    def read(self, path: str, labels: Labels, box: Box) -> Voxels:
        """Read a box (z, y, x) of a volume through the cache; raises like `volume` and `Tiles`."""
        return self.tiles.read(self.reader_of(path)[0], *self.volume(path, labels), box)

    def cost(self, path: str, labels: Labels, box: Box) -> int:
        """Return how many bytes have to be decoded to read a box; raises like `volume`."""
        return self.tiles.missing_bytes(self.reader_of(path)[0], *self.volume(path, labels), box)

    @property
    def segmentations(self) -> list[Segmentation]:
        """All segmentations, in the order of the structures table; then predictions."""
        return [*self._listed, *self._predictions()]

    def _predictions(self) -> Iterator[Segmentation]:
        for source, (_, prediction) in sorted(self._predicted.items()):
            for mask in prediction.about.masks:
                labels = {"structure": mask.structure}
                grid, box = prediction.about.grid, mask.box
                yield Segmentation(grid, source, labels, mask.voxels, mask.volume_cc, box, None)

    @cached_property
    def _listed(self) -> list[Segmentation]:
        table = self.revision.dataset.columns("structures", [*_COLUMNS, *_MEASURED])
        rows = table.filter(pc.equal(table.column("patient_id"), self.patient_id)).to_pylist()
        return [_segmentation(row) for row in rows]


def _changed(known: dict[str, _T], name: str, value: _T | None) -> dict[str, _T]:
    """Return a dict with another value of a name; without the name if that is None."""
    others = {k: v for k, v in known.items() if k != name}
    return others if value is None else others | {name: value}


def _segmentation(row: Mapping[str, Any]) -> Segmentation:
    start, stop, centre = row["bbox_start"], row["bbox_stop"], row["centroid_mm"]
    box = None
    if start is not None:
        z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
        box = (z, y, x)
    labels = {"structure": row["structure"]}
    labels |= {name: row[name] for name in SEGMENTATION_LABELS if row[name] is not None}
    return Segmentation(
        row["grid"],
        row["source"],
        labels,
        row["voxels"],
        row["volume_cc"],
        box,
        None if centre is None else (centre[2], centre[1], centre[0]),
    )


class Volumes:
    """What requests for voxels share in one process: decoded chunks, open patients, threads."""

    def __init__(self, settings: Settings) -> None:
        megabytes = int(settings.options.get(CACHE_OPTION, DEFAULT_CACHE_MB))
        self.tiles = Tiles(megabytes * 1_000_000)
        self.decoding = Decoding()
        place = settings.options.get(PREDICTIONS_OPTION)
        self.predictions = None if place is None else Location(place, settings.storage_options)
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str, str], OpenPatient] = OrderedDict()

    def kept(self, revision: Revision, patient_id: str) -> OpenPatient | None:
        """Return a patient that is open already."""
        key = (revision.name, revision.sha, patient_id)
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
            return self._open.get(key)

    def open(self, revision: Revision, patient_id: str) -> OpenPatient:
        """Open a patient: one request. Raises `DamagedStoreError`."""
        found = OpenPatient(revision, patient_id, self.tiles, self.predictions)
        with self._lock:
            self._open[revision.name, revision.sha, patient_id] = found
            while len(self._open) > _MOST_PATIENTS:
                self._open.popitem(last=False)
        return found

    def forget(self, patient: OpenPatient) -> None:
        """Open a patient again on next use: its store was replaced."""
        with self._lock:
            revision = patient.revision
            self._open.pop((revision.name, revision.sha, patient.patient_id), None)


def volumes_of(request: Request) -> Volumes:
    """Return what requests for voxels share."""
    volumes: Volumes = request.app.state.volumes
    return volumes


@dataclass(frozen=True)
class PatientRequest:
    """A request about a patient: who asks is allowed to, and the store is open."""

    request: Request
    query: Query
    patient: OpenPatient
    kept: Kept
    may_have_tables: bool

    async def run(self, work: Callable[[], _T], cost: int = 0) -> _T:
        """Return what `work` returns, run in a thread; `cost` is how many bytes it decodes."""
        return await volumes_of(self.request).decoding.run(self.request, work, cost)


Handler = Callable[[PatientRequest], Awaitable[Response]]


def about_patient(path: str, parameters: Sequence[str], handler: Handler) -> Route:
    """Make the route below a patient's, with a handler for those who may have voxels.

    `parameters` are those that the query may have. `rev` is one of all routes: a revision, whose
    answers may be kept for ever.
    """

    @functools.wraps(handler)
    async def endpoint(request: Request) -> Response:
        revision, patient_id = _requested_patient(request)
        query = Query(request, parameters)
        settings = service_of(request).settings
        may_have_tables = caller_of(request).may(revision.name, Kind.TABLES)
        volumes = volumes_of(request)
        lasts = volumes.predictions is None or not _tells_of_predictions(path, request)
        kept = Kept(request, revision.sha, settings.public, f"tables: {may_have_tables}", lasts)
        if kept.is_held:
            return kept.not_modified()
        patient = volumes.kept(revision, patient_id)
        try:
            if patient is None:
                patient = await volumes.decoding.run(
                    request, lambda: volumes.open(revision, patient_id)
                )
            return await handler(PatientRequest(request, query, patient, kept, may_have_tables))
        except (UnknownLabelError, UsageError, DamagedStoreError) as error:
            if isinstance(error, ChangedStoreError) and patient is not None:
                volumes.forget(patient)
            raise explained(error, patient_id) from error

    return Route(_PREFIX + path, endpoint)


def _tells_of_predictions(path: str, request: Request) -> bool:
    """Return whether an answer may change with the predictions, which no revision covers."""
    return path in ("", "/values") or PREDICTED in request.query_params.get("source", "")


def _requested_patient(request: Request) -> tuple[Revision, str]:
    """Return the revision and the patient of a request; its line in the audit log says both."""
    service, given = service_of(request), request.path_params
    name, patient_id = f"{given['owner']}/{given['name']}", given["patient"]
    visit: Visit = request.scope["visit"]
    visit.dataset = name
    wanted = request.query_params.get("rev", MAIN)
    revision = service.named_revision(caller_of(request), name, Kind.VOXELS, wanted)
    visit.sha = revision.sha
    if patient_id not in revision.dataset.row_of:
        near = suggestion(patient_id[:60], revision.dataset.ids)
        raise HttpError(404, f"{name} has no patient {patient_id[:60]!r}; {near}.")
    visit.path = f"patients/{patient_id}{_detail(request)}"
    return revision, patient_id


def _detail(request: Request) -> str:
    """Return what of a patient was asked for: the path after its id, and the query's array."""
    after = request.url.path.rpartition(request.path_params["patient"])[2]
    array = request.query_params.get("array")
    return f"{after} {array[:60]}" if array else after


def explained(
    error: UnknownLabelError | UsageError | DamagedStoreError, patient_id: str
) -> HttpError:
    """Return the answer for an error: the client's mistake, or a store that cannot be read."""
    if isinstance(error, UnknownLabelError):
        return HttpError(404, str(error))
    if isinstance(error, UsageError):
        return invalid(str(error))
    _LOG.error("%s", error)
    return _unreadable(error, patient_id)


def damage(error: DamagedStoreError) -> str:
    """Return what is damaged and how, without the place of the files."""
    return f"{error.part or 'the metadata of the store'}: {error.finding}"


def _unreadable(error: DamagedStoreError, patient_id: str) -> HttpError:
    if isinstance(error, ChangedStoreError):
        return HttpError(
            503,
            f"The store of patient {patient_id} is being replaced. Try again in a moment.",
            headers={"Retry-After": "5"},
        )
    return HttpError(
        502,
        f"The store of patient {patient_id} is damaged: {damage(error)}. What does not "
        "need this can still be read.",
    )


def requested_plane(query: Query, grid: Grid) -> tuple[int, int]:
    """Return the axis and index of the plane that `axis` with `n` or `at_mm` names.

    Raises `HttpError` (422) for a plane outside the grid.
    """
    axis_name = query.choice("axis", ("z", "y", "x"), "z")
    axis = axis_number(axis_name)
    n, at_mm = query.whole("n"), query.numbers("at_mm", (1, 3))
    if (n is None) == (at_mm is None):
        raise invalid("Give either 'n', the index of the plane, or 'at_mm', a position.")
    if at_mm is not None:
        return axis, nearest_plane(grid, axis, at_mm)
    assert n is not None
    if not 0 <= n < grid.shape[axis]:
        raise invalid(f"Parameter 'n' is {n}; the grid has planes 0 to {grid.shape[axis] - 1}.")
    return axis, n


def requested_segmentations(query: Query, patient: OpenPatient, grid: str) -> list[Segmentation]:
    """Return those that `source`, `structures`, `fold`, `step` and `observer` choose.

    Predictions are those that are there now: this reads their metadata. Raises `HttpError` (404)
    for a name that is none.
    """
    chosen: dict[str, list[str]] = {}
    patient.look_at(query.words("source") or ())
    for parameter, known in (
        ("source", patient.sources),
        ("structures", LABEL_ORDER["structure"]),
        *((name, LABEL_ORDER[name]) for name in SEGMENTATION_LABELS),
    ):
        words = query.words(parameter)
        for word in words or ():
            require_name(parameter, word, [str(k) for k in known])
        if words is not None:
            chosen["structure" if parameter == "structures" else parameter] = words
    sources = chosen.pop("source", ["clinical"])
    return [
        s
        for s in patient.segmentations
        if s.grid == grid
        and s.source in sources
        and all(str(s.labels.get(k)) in v for k, v in chosen.items() if k in s.labels)
    ]


def require_name(parameter: str, name: str, known: Sequence[str]) -> None:
    """Raise `HttpError` (404) for an unknown name, with the nearest."""
    if name not in known:
        raise HttpError(
            404, f"Parameter '{parameter}': unknown {name[:60]!r}; {suggestion(name[:60], known)}."
        )
