"""What is drawn over planes: outlines of structures and isodoses, in mm; and dose-volume curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import BaseRoute

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.figures.contours import MASK_LEVEL, level_lines, mask_polygons
from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.geometry.plane import Plane, in_plane, plane_of
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.http.query import invalid
from lundprobe_zarr.service.voxels.dose_volume import STEP_GY, histogram
from lundprobe_zarr.service.voxels.planes import PLACE_PARAMETERS, plane_place
from lundprobe_zarr.service.voxels.volumes import (
    SEGMENTATION_LABELS,
    SOURCES,
    OpenPatient,
    PatientRequest,
    Segmentation,
    about_patient,
    damage,
    requested_plane,
    requested_segmentations,
)
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

MaskGrid = Literal["mri", "sct"]
DoseGrid = Literal["mri", "sct", "dose"]
Unit = Literal["pct", "Gy"]
#: Levels of isodoses that are drawn unasked, percent of the prescription.
DEFAULT_LEVELS = (20.0, 50.0, 80.0, 95.0)
_MOST_LEVELS = 20
#: Largest level, in either unit.
_MOST = 10_000
#: Digits behind the point of a coordinate in mm: rounded by at most 0.0005 mm.
_DIGITS = 3
_CHOICE = ("source", "structures", *SEGMENTATION_LABELS)


def routes() -> list[BaseRoute]:
    """Return the routes of contours, isodoses and dose-volume curves."""
    return [
        about_patient("/contours", ("grid", *PLACE_PARAMETERS, *_CHOICE), _contours),
        about_patient("/isodoses", ("grid", *PLACE_PARAMETERS, "levels", "unit"), _isodoses),
        about_patient("/dvh", ("grid", *_CHOICE), _dvh),
    ]


async def _contours(request: PatientRequest) -> Response:
    """Return outlines of structures in a plane, with holes: mm, LPS."""
    patient, query = request.patient, request.query
    name = query.choice("grid", get_args(MaskGrid), "mri")
    grid = patient.grid(name)
    axis, index = requested_plane(query, grid)
    # In a thread: the first time it reads a table.
    chosen = await request.run(lambda: requested_segmentations(query, patient, name))
    cut = [(s, box) for s in chosen if (box := _cut(s, axis, index)) is not None]
    cost = sum(patient.cost(s.array, s.labels, box) for s, box in cut)

    def work() -> Response:
        found, damaged = contours(patient, plane_of(grid, axis, index), cut)
        content = {
            "grid": name,
            **plane_place(grid, axis, index),
            "level": MASK_LEVEL,
            "contours": found,
            "missing": _missing(query.words("structures"), chosen),
            "damaged": damaged,
        }
        return request.kept.json(content, is_whole=not damaged)

    return await request.run(work, cost)


def _cut(segmentation: Segmentation, axis: int, index: int) -> Box | None:
    """Return the part of a segmentation's box that lies in a plane; None if it misses it."""
    box = segmentation.box
    if box is None or not box[axis].start <= index < box[axis].stop:
        return None
    z, y, x = (slice(index, index + 1) if a == axis else s for a, s in enumerate(box))
    return z, y, x


def _missing(asked_for: Sequence[str] | None, chosen: Iterable[Segmentation]) -> list[str]:
    """Return the structures that were asked for and that the patient does not have."""
    there = {s.structure for s in chosen}
    return [name for name in asked_for or () if name not in there]


def contours(
    patient: OpenPatient, plane: Plane, cut: Iterable[tuple[Segmentation, Box]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the outlines of masks, of which `cut` has the boxes in the plane, and what is damaged.

    A polygon is its outer ring and then its holes; a ring is x, y, z, x, y, z … in mm, LPS, and
    ends at its first point.
    """
    found, damaged = [], []
    for segmentation, box in cut:
        try:
            mask = patient.read(segmentation.array, segmentation.labels, box).squeeze(plane.axis)
        except DamagedStoreError as error:
            damaged.append(damage(error))
            continue
        rows, columns = (box[a].start for a in in_plane(plane.axis))
        polygons = [
            [_flat(plane, ring) for ring in polygon.rings]
            for polygon in mask_polygons(mask, (rows, columns))
        ]
        if polygons:
            found.append({**segmentation.named(), "polygons": polygons})
    return found, damaged


def _flat(plane: Plane, places: npt.NDArray[np.float64]) -> list[float]:
    """Return places of a plane as x, y, z, x, y, z …, mm, LPS, without needless digits."""
    found: list[float] = np.round(plane.points(places), _DIGITS).ravel().tolist()
    return found


async def _isodoses(request: PatientRequest) -> Response:
    """Return the lines of equal dose in a plane: mm, LPS."""
    patient, query = request.patient, request.query
    name = query.choice("grid", get_args(DoseGrid), "mri")
    grid = patient.grid(name)
    axis, index = requested_plane(query, grid)
    unit: Unit = query.choice("unit", get_args(Unit), "pct")
    levels = query.numbers("levels")
    if levels is None:
        levels = [v if unit == "pct" else v * PRESCRIPTION_GY / 100 for v in DEFAULT_LEVELS]
    if len(levels) > _MOST_LEVELS or not all(0 < level <= _MOST for level in levels):
        raise invalid(
            f"Parameter 'levels' needs 1 to {_MOST_LEVELS} numbers above 0, at most {_MOST}."
        )
    z, y, x = (
        slice(index, index + 1) if a == axis else slice(0, n) for a, n in enumerate(grid.shape)
    )
    path = f"{name}/dose"

    def work() -> Response:
        dose = patient.read(path, {}, (z, y, x)).squeeze(axis)
        content = {
            "grid": name,
            **plane_place(grid, axis, index),
            "prescription_gy": PRESCRIPTION_GY,
            "unit": unit,
            "isodoses": list(isodoses(dose, plane_of(grid, axis, index), levels, unit)),
        }
        return request.kept.json(content)

    return await request.run(work, patient.cost(path, {}, (z, y, x)))


def isodoses(
    dose: npt.NDArray[Any], plane: Plane, levels: Sequence[float], unit: Unit
) -> Iterable[dict[str, Any]]:
    """Yield the lines at each level of a plane of dose (rows, columns), Gy.

    A line is x, y, z, x, y, z … in mm, LPS; a closed one ends at its first point.
    """
    for level in levels:
        gy = level if unit == "Gy" else level * PRESCRIPTION_GY / 100
        lines = [_flat(plane, line) for line in level_lines(dose, gy)]
        yield {"level": level, "gy": gy, "lines": lines}


async def _dvh(request: PatientRequest) -> Response:
    """Return cumulative dose-volume histograms of structures."""
    patient, query = request.patient, request.query
    name = query.choice("grid", get_args(MaskGrid), "sct")
    patient.grid(name)
    chosen = await request.run(lambda: requested_segmentations(query, patient, name))
    others = [s for s in SOURCES if s != "clinical"]
    if name == "sct" and any(s in others for s in query.words("source") or ()):
        raise HttpError(404, "The sct grid has clinical masks only; ask for grid=mri.")

    def work() -> Response:
        found, damaged = [], []
        for segmentation in chosen:
            try:
                found.append({**segmentation.named(), **histogram(patient, segmentation)})
            except DamagedStoreError as error:
                damaged.append(damage(error))
        content = {
            "grid": name,
            "step_gy": STEP_GY,
            "prescription_gy": PRESCRIPTION_GY,
            "histograms": found,
            "missing": _missing(query.words("structures"), chosen),
            "damaged": damaged,
        }
        return request.kept.json(content, is_whole=not damaged)

    return await request.run(work, _cost(chosen))


def _cost(chosen: Sequence[Segmentation]) -> int:
    """Return the bytes of the boxes of masks (1 a voxel) and of the dose in them (4)."""
    shapes = ([a.stop - a.start for a in s.box] for s in chosen if s.box is not None)
    return sum(5 * z * y * x for z, y, x in shapes)
