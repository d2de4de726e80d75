"""Planes of voxels: typed voxels for programs, pictures for people, and values at a point."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import BaseRoute

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.figures.picture import picture
from lundprobe_zarr.geometry.lattice import Box, Grid
from lundprobe_zarr.geometry.plane import (
    NEAREST_RULE,
    Plane,
    in_plane,
    nearest_voxel,
    plane_of,
)
from lundprobe_zarr.schema.layout import LABEL_ORDER, SEGMENTATION_SOURCES, ArraySpec
from lundprobe_zarr.service.http.query import Query, invalid
from lundprobe_zarr.service.voxels.volumes import (
    Labels,
    OpenPatient,
    PatientRequest,
    Voxels,
    about_patient,
    damage,
    requested_plane,
)
from lundprobe_zarr.service.voxels.windows import window_of
from lundprobe_zarr.vocabulary.files import Label
from lundprobe_zarr.vocabulary.names import MODALITY_UNITS, SPATIAL_DIMS

Form = Literal["raw", "png", "webp"]
Values = Literal["exact", "int16"]
_STRIDES = ("1", "2", "4")
#: Header that says what the bytes of a plane are: JSON.
PLANE_HEADER = "X-Plane"
#: Parameters that name a plane of a grid.
PLACE_PARAMETERS = ("axis", "n", "at_mm")
_LABELS = tuple(LABEL_ORDER)
#: Steps of int16 on either side of the middle of the values.
_STEPS = 32_767


def routes() -> list[BaseRoute]:
    """Return the routes of planes and of values at a point."""
    known = ("array", *_LABELS, *PLACE_PARAMETERS, "stride", "box", "format", "values", "window")
    return [
        about_patient("/plane", known, _plane),
        about_patient("/values", ("x", "y", "z"), _values),
    ]


@dataclass(frozen=True)
class _Wanted:
    """A plane as asked for: a volume, a box one voxel thick, and what to make of it."""

    path: str
    labels: Labels
    axis: int
    index: int
    box: Box
    stride: int

    def plane(self, grid: Grid) -> Plane:
        """Return where its voxels lie."""
        rows, columns = in_plane(self.axis)
        start = self.box[rows].start, self.box[columns].start
        return plane_of(grid, self.axis, self.index, start, self.stride)

    def cut(self, voxels: Voxels) -> Voxels:
        """Return every `stride`-th voxel of the box as (rows, columns)."""
        return voxels.squeeze(self.axis)[:: self.stride, :: self.stride]


async def _plane(request: PatientRequest) -> Response:
    """Return a plane of one volume: voxels, or a picture of them."""
    query, patient = request.query, request.patient
    wanted = _wanted(query, patient)
    form: Form = query.choice("format", get_args(Form), "raw")
    values: Values = query.choice("values", get_args(Values), "exact")
    window = query.numbers("window", (2,))
    if window is not None and (form == "raw" or window[0] >= window[1]):
        raise invalid("Parameter 'window' needs two rising numbers, and format png or webp.")

    def work() -> Response:
        voxels = wanted.cut(patient.read(wanted.path, wanted.labels, wanted.box))
        if form == "raw":
            return _raw(request, wanted, voxels, values)
        low, high = window or window_of(patient, wanted.path, wanted.labels)
        drawn = picture(voxels, wanted.plane(patient.grid(_grid_of(wanted.path))), low, high)
        attributes = _plane_attributes(wanted, patient, drawn.plane, drawn.pixels.shape)
        attributes |= {"dtype": "uint8", "window": [low, high]}
        headers = {PLANE_HEADER: json.dumps(attributes)}
        return request.kept.data(drawn.encoded(form), f"image/{form}", headers, is_packed=True)

    return await request.run(work, patient.cost(wanted.path, wanted.labels, wanted.box))


def _grid_of(path: str) -> str:
    return path.partition("/")[0]


def _wanted(query: Query, patient: OpenPatient) -> _Wanted:
    path = query.text("array")
    if path is None:
        raise invalid(f"Give 'array', one of {', '.join(patient.store.arrays)}.")
    spec = patient.store.arrays[path].spec if path in patient.store.arrays else None
    labels = {} if spec is None else _labels(query, spec)
    array, _ = patient.volume(path, labels)
    axis, index = requested_plane(query, patient.grid(array.spec.grid))
    box = _box(query, array.volume_shape, axis, index)
    return _Wanted(path, labels, axis, index, box, int(query.choice("stride", _STRIDES, "1")))


def _labels(query: Query, spec: ArraySpec) -> dict[str, Label]:
    """Return the labels of the query; folds and steps are numbers."""
    found: dict[str, Label] = {}
    for name in _LABELS:
        text = query.text(name)
        if text is not None:
            numbers = {str(k): k for k in LABEL_ORDER[name]}
            found[name] = numbers.get(text, text[:60])
    lacking = [d for d in spec.label_dims if d not in found]
    if lacking:
        known = ", ".join(str(k) for k in LABEL_ORDER[lacking[0]])
        raise invalid(f"Array {spec.path} needs '{lacking[0]}', one of {known}.")
    return found


def _box(query: Query, shape: tuple[int, int, int], axis: int, index: int) -> Box:
    """Return the box to read: one voxel thick, and otherwise the query's or all of the grid."""
    spans = [(0, n) for n in shape]
    given = query.numbers("box", (6,))
    if given is not None:
        ends = [int(v) for v in given]
        spans = list(zip(ends[:3], ends[3:], strict=True))
        fits = (0 <= a < b <= n for (a, b), n in zip(spans, shape, strict=True))
        if ends != given or not all(fits):
            raise invalid(
                "Parameter 'box' needs z0,y0,x0,z1,y1,x1: the first voxel and the end, exclusive, "
                f"within the grid of {shape[0]}, {shape[1]}, {shape[2]} voxels (z, y, x)."
            )
    spans[axis] = (index, index + 1)
    z, y, x = (slice(a, b) for a, b in spans)
    return z, y, x


def _raw(request: PatientRequest, wanted: _Wanted, voxels: Voxels, values: Values) -> Response:
    """Answer with the bytes of voxels, shuffled: first all first bytes, then all second ones …"""
    scaled = Scaled.of(voxels, values)
    patient = request.patient
    plane = wanted.plane(patient.grid(_grid_of(wanted.path)))
    attributes = _plane_attributes(wanted, patient, plane, voxels.shape) | {
        "dtype": scaled.stored.dtype.name,
        "slope": scaled.slope,
        "intercept": scaled.intercept,
        "max_error": scaled.max_error,
        "shuffled": True,
    }
    content = shuffled(scaled.stored)
    return request.kept.data(
        content, "application/octet-stream", {PLANE_HEADER: json.dumps(attributes)}
    )


@dataclass(frozen=True)
class Scaled:
    """Values as sent: value = stored × slope + intercept, off by at most `max_error`."""

    stored: npt.NDArray[Any]
    slope: float = 1.0
    intercept: float = 0.0
    max_error: float = 0.0

    @classmethod
    def of(cls, voxels: Voxels, values: Values) -> Scaled:
        """Return voxels as they are or, if so asked, as int16 with a scale.

        Masks are uint8. Values that are no numbers have no place on a scale: a plane with one stays
        as it is.
        """
        if voxels.dtype == np.bool_:
            return cls(voxels.view(np.uint8))
        if values == "exact" or voxels.dtype.kind != "f" or not voxels.size:
            return cls(voxels)
        low, high = float(voxels.min()), float(voxels.max())
        if not math.isfinite(low) or not math.isfinite(high):
            return cls(voxels)
        middle = low / 2 + high / 2
        slope = (high - middle) / _STEPS or 1.0
        stored = np.rint((voxels.astype(np.float64) - middle) / slope)
        return cls(stored.astype(np.int16), slope, middle, slope / 2)


def shuffled(values: npt.NDArray[Any]) -> bytes:
    """Return values' bytes, little-endian, byte by byte: all first bytes, then all second ones.

    Neighbours differ little in their high bytes, so that these compress well.
    """
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return plain.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def _plane_attributes(
    wanted: _Wanted, patient: OpenPatient, plane: Plane, shape: tuple[int, ...]
) -> dict[str, Any]:
    spec = patient.store.arrays[wanted.path].spec
    return {
        "array": wanted.path,
        "labels": wanted.labels,
        "unit": unit_of(spec, wanted.labels),
        "grid": spec.grid,
        "axis": SPATIAL_DIMS[wanted.axis],
        "n": wanted.index,
        "box": [[s.start for s in wanted.box], [s.stop for s in wanted.box]],
        "stride": wanted.stride,
        "shape": list(shape),
        "origin_mm": plane.origin_mm.tolist(),
        "row_mm": plane.row_mm.tolist(),
        "column_mm": plane.column_mm.tolist(),
    }


def unit_of(spec: ArraySpec, labels: Labels) -> str:
    """Return the unit of a volume's values; "1" is none."""
    return spec.units or MODALITY_UNITS[str(labels["modality"])]


async def _values(request: PatientRequest) -> Response:
    """Return every array's value at a point, and the structures that contain it."""
    point = []
    for name in ("x", "y", "z"):
        given = request.query.numbers(name, (1,))
        if given is None:
            raise invalid("Give the point as 'x', 'y' and 'z', in mm, LPS.")
        point += given
    patient = request.patient

    def work() -> Response:
        patient.look_again()
        found = values_at(patient, point)
        return request.kept.json(found, is_whole=not found["damaged"])

    # At most a chunk of each volume; of most masks none, as the point is outside their boxes.
    return await request.run(work)


def values_at(patient: OpenPatient, point: list[float]) -> dict[str, Any]:
    """Return the values at a point (x, y, z), mm, LPS, of all volumes, by the nearest voxel.

    What is damaged is left out and listed.
    """
    damaged: list[str] = []
    grids: dict[str, Any] = {}
    for name, grid in patient.grids.items():
        voxel = nearest_voxel(grid, point)
        grids[name] = None if voxel is None else _values_of(patient, name, grid, voxel, damaged)
    return {"point_mm": point, "rule": NEAREST_RULE, "grids": grids, "damaged": damaged}


def _values_of(
    patient: OpenPatient, name: str, grid: Grid, voxel: tuple[int, int, int], damaged: list[str]
) -> dict[str, Any]:
    z, y, x = (slice(i, i + 1) for i in voxel)

    def read(path: str, labels: Labels) -> Any:
        try:
            return patient.read(path, labels, (z, y, x)).item()
        except DamagedStoreError as error:
            damaged.append(damage(error))
            return None

    values = [
        {
            "array": array.spec.path,
            "labels": record.labels,
            "unit": unit_of(array.spec, record.labels),
            "value": _plain(read(array.spec.path, record.labels)),
        }
        for array in patient.store.arrays.values()
        if array.spec.grid == name and array.spec.path not in SEGMENTATION_SOURCES
        for record in array.sources
    ]
    inside = [
        s.named()
        for s in patient.segmentations
        if s.grid == name and _holds(s.box, voxel) and read(s.array, s.labels)
    ]
    centre = plane_of(grid, 0, voxel[0], voxel[1:]).origin_mm
    return {
        "voxel": list(voxel),
        "centre_mm": centre.tolist(),
        "values": values,
        "inside": inside,
    }


def _holds(box: Box | None, voxel: tuple[int, int, int]) -> bool:
    return box is not None and all(s.start <= i < s.stop for s, i in zip(box, voxel, strict=True))


def _plain(value: Any) -> Any:
    """Return a value for JSON, which knows no numbers that are none: they become texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def plane_place(grid: Grid, axis: int, index: int) -> Mapping[str, Any]:
    """Return what answers say of the place of a whole plane."""
    plane = plane_of(grid, axis, index)
    return {
        "axis": SPATIAL_DIMS[axis],
        "n": index,
        "origin_mm": plane.origin_mm.tolist(),
        "row_mm": plane.row_mm.tolist(),
        "column_mm": plane.column_mm.tolist(),
    }
