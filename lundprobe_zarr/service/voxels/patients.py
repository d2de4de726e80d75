"""One patient in JSON: grids, arrays, structures, what is missing and why; and a thumbnail."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.routing import BaseRoute

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.figures.picture import picture
from lundprobe_zarr.geometry.affine import is_aligned
from lundprobe_zarr.geometry.lattice import Box, Grid
from lundprobe_zarr.geometry.plane import nearest_voxel, plane_of
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.service.voxels.planes import unit_of
from lundprobe_zarr.service.voxels.volumes import (
    OpenPatient,
    PatientRequest,
    Segmentation,
    about_patient,
    damage,
    require_name,
)
from lundprobe_zarr.service.voxels.windows import body_box, opening_point, t2w_sample, window_of
from lundprobe_zarr.stores.metadata import FIDUCIAL_PATH, VolumeArray
from lundprobe_zarr.vocabulary.files import SourceFile, expected_files
from lundprobe_zarr.vocabulary.names import (
    PRESCRIPTION_FRACTIONS,
    PRESCRIPTION_GY,
    STRUCTURE_TABLE,
)

#: Tables whose rows are given unasked.
_TABLES = ("patients", "structures")
_QC = "qc"
#: Pixels of the longer side of a thumbnail, at most.
_THUMBNAIL = 256


def routes() -> list[BaseRoute]:
    """Return the routes of a patient's description and thumbnail."""
    return [
        about_patient("", ("tables",), _patient),
        about_patient("/thumbnail", (), _thumbnail),
    ]


async def _patient(request: PatientRequest) -> Response:
    """Describe a patient: grids, arrays, structures, what is missing, rows of the tables."""
    patient = request.patient
    known = sorted(patient.revision.dataset.manifest.tables)
    tables = request.query.words("tables")
    for name in tables or ():
        require_name("tables", name, known)
    wanted = _TABLES if tables is None else tables

    def work() -> Response:
        patient.look_for_predictions()
        found = described(patient)
        if request.may_have_tables:
            found["tables"] = {name: rows_of(patient, name) for name in wanted}
            found["qc"] = rows_of(patient, _QC) if _QC in known else None
        else:
            found["tables"] = found["qc"] = None
        return request.kept.json(found, is_whole=not found["damaged"])

    return await request.run(work, await request.run(lambda: _cost(patient)))


def _cost(patient: OpenPatient) -> int:
    return t2w_sample(patient) if _has_t2w(patient) else 0


def _has_t2w(patient: OpenPatient) -> bool:
    array = patient.store.arrays.get("mri/image")
    return array is not None and any(r.labels == {"modality": "T2w"} for r in array.sources)


def described(patient: OpenPatient) -> dict[str, Any]:
    """Return what is known of a patient from the store's metadata and the structures table.

    All positions are (x, y, z), mm, LPS; all voxels, shapes and spacings are (z, y, x). A window
    that cannot be found, as the image is damaged, is None.
    """
    attributes = patient.store.attributes
    damaged: list[str] = list(patient.unshown)
    point, why = opening_point(patient)
    return {
        "patient_id": patient.patient_id,
        "dataset": patient.revision.name,
        "revision": patient.revision.sha,
        **{key: attributes.get(key) for key in ("part", "protocol", "precision", "created")},
        "synthetic": bool(attributes.get("synthetic", False)),
        "prescription": {"gy": PRESCRIPTION_GY, "fractions": PRESCRIPTION_FRACTIONS},
        "opening": {"point_mm": point, "is": why},
        "grids": {name: _grid(patient, name, grid) for name, grid in patient.grids.items()},
        "arrays": [_array(patient, a, damaged) for a in patient.store.arrays.values()],
        "structures": list(_structures(patient)),
        "segmentations": [_segmentation(s) for s in patient.segmentations],
        "missing": list(_missing(patient)),
        "fiducials_mm": _fiducials(patient, damaged),
        "findings": list(attributes.get("findings", ())),
        "damaged": damaged,
    }


def _grid(patient: OpenPatient, name: str, grid: Grid) -> dict[str, Any]:
    return {
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing_mm.tolist(),
        "affine_ras": grid.affine.tolist(),
        "is_aligned": is_aligned(grid.affine),
        "body_box": _corners(body_box(patient, name)),
    }


def _corners(box: Box | None) -> list[list[int]] | None:
    """Return the first voxel and the end, exclusive."""
    return None if box is None else [[s.start for s in box], [s.stop for s in box]]


def _array(patient: OpenPatient, array: VolumeArray, damaged: list[str]) -> dict[str, Any]:
    labels = patient.store.labels(array.spec.group)
    is_shown = array.spec.path not in SEGMENTATION_SOURCES
    return {
        "array": array.spec.path,
        "grid": array.spec.grid,
        "is": array.spec.long_name,
        "dtype": array.dtype.name,
        "labels": {dim: labels[dim] for dim in array.spec.label_dims},
        "volumes": [_volume(patient, array, r, damaged) for r in array.sources if is_shown],
    }


def _volume(
    patient: OpenPatient, array: VolumeArray, record: SourceRecord, damaged: list[str]
) -> dict[str, Any]:
    try:
        window = list(window_of(patient, array.spec.path, record.labels))
    except DamagedStoreError as error:
        damaged.append(damage(error))
        window = None
    return {
        "labels": record.labels,
        "unit": unit_of(array.spec, record.labels),
        "range": None if record.range is None else list(record.range),
        "window": window,
        "is_exact": record.exact,
        "max_abs_error": record.max_abs_error,
    }


def _structures(patient: OpenPatient) -> Iterator[dict[str, Any]]:
    """Yield all nine, with the grids on which the patient has a clinical mask of each."""
    lacking = {m["labels"].get("structure"): m["why"] for m in _missing(patient, "mri/clinical")}
    for structure in STRUCTURE_TABLE:
        grids = [
            s.grid
            for s in patient.segmentations
            if s.source == "clinical" and s.structure == structure.label
        ]
        yield {
            "structure": structure.label,
            "is": structure.description,
            "grids": grids,
            "missing_because": lacking.get(structure.label),
        }


def _segmentation(s: Segmentation) -> dict[str, Any]:
    return {
        "grid": s.grid,
        **s.named(),
        "voxels": s.voxels,
        "volume_cc": s.volume_cc,
        "box": _corners(s.box),
        "centroid_mm": s.centroid_mm,
    }


def _missing(patient: OpenPatient, group: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a complete patient of this part has and this one does not, and why."""
    there = {
        (f"{array.spec.path}", tuple(sorted(record.labels.items())))
        for array in patient.store.arrays.values()
        for record in array.sources
    }
    findings = set(patient.store.attributes.get("findings", ()))
    for path, file in expected_files(str(patient.store.attributes["part"])).items():
        array = f"{file.group}/{file.variable}"
        if array == FIDUCIAL_PATH or (group is not None and file.group != group):
            continue
        if (array, tuple(sorted(file.labels.items()))) not in there:
            yield {"array": array, "labels": file.labels, "why": _why(path, file, findings)}


def _why(path: str, file: SourceFile, findings: set[str]) -> str:
    if f"absent: {path} (not listed as missing)" in findings:
        return "the source has no file of it, and its authors do not list it as missing"
    if f"absent: {path}" in findings:
        return "the source has no file of it"
    if file.group.endswith("clinical") and "structure" in file.labels:
        return "not delineated: the authors of the data list it as missing"
    return "the source had no file of it when this patient was converted"


def _fiducials(patient: OpenPatient, damaged: list[str]) -> list[list[float]] | None:
    """Return the centres of the fiducials (x, y, z), mm, LPS; None if they cannot be read."""
    count = patient.store.n_fiducials
    if not count:
        return []
    try:
        found = patient.reader.small_array(FIDUCIAL_PATH, (count, 3), np.dtype(np.float64))
    except DamagedStoreError as error:
        damaged.append(damage(error))
        return None
    points: list[list[float]] = found.tolist()
    return points


def rows_of(patient: OpenPatient, table: str) -> list[dict[str, Any]]:
    """Return the patient's rows of a table. Numbers that are none become None, as in JSON."""
    rows = patient.revision.dataset.patient_rows(table, patient.patient_id).to_pylist()
    return [{k: _plain(v) for k, v in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | bool | None) else str(value)


async def _thumbnail(request: PatientRequest) -> Response:
    """Return a small PNG of the axial T2w slice at which the patient is first shown."""
    patient = request.patient
    patient.volume("mri/image", {"modality": "T2w"})

    def work() -> Response:
        return request.kept.data(_drawn(patient), "image/png", is_packed=True)

    return await request.run(work, await request.run(lambda: t2w_sample(patient)))


def _drawn(patient: OpenPatient) -> bytes:
    grid = patient.grid("mri")
    voxel = nearest_voxel(grid, opening_point(patient)[0])
    index = grid.shape[0] // 2 if voxel is None else voxel[0]
    body = body_box(patient, "mri") or tuple(slice(0, n) for n in grid.shape)
    rows, columns = body[1], body[2]
    longer = max(rows.stop - rows.start, columns.stop - columns.start)
    stride = -(-longer // _THUMBNAIL)
    box = (slice(index, index + 1), rows, columns)
    labels = {"modality": "T2w"}
    voxels = patient.read("mri/image", labels, box)[0, ::stride, ::stride]
    plane = plane_of(grid, 0, index, (rows.start, columns.start), stride)
    return picture(voxels, plane, *window_of(patient, "mri/image", labels)).encoded("png")
