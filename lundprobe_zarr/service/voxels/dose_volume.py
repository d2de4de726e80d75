"""Dose-volume histograms of one patient's segmentations: from the table, else from voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.measures.coverage import covered
from lundprobe_zarr.measures.histogram import binned
from lundprobe_zarr.service.voxels.volumes import SEGMENTATION_LABELS, OpenPatient, Segmentation

#: Width of the bins, Gy.
STEP_GY = 0.1
_TABLE = "dvh"


def histogram(patient: OpenPatient, segmentation: Segmentation) -> dict[str, Any]:
    """Return a segmentation's cumulative dose-volume histogram, as the `dvh` table has it.

    Returns
    -------
    dict
        `volume_cc`: of the whole segmentation. `covered_pct`: percent of it inside the planning
        dose grid, which alone is counted; None without planning grid (then all is counted) or
        voxels.
        `cumulative_cc`: volumes, cm³, that receive at least i × 0.1 Gy, as far as they are not 0;
        None without dose or voxels, and where a dose is no number. `from`: `table` or `voxels`.

    Raises
    ------
    DamagedStoreError
        If a voxel cannot be read.
    """
    found = _row(patient, segmentation)
    if found is not None:
        names = ("volume_cc", "covered_pct", "cumulative_cc")
        return {name: found[name] for name in names} | {"from": "table"}
    return _of_voxels(patient, segmentation) | {"from": "voxels"}


def _row(patient: OpenPatient, segmentation: Segmentation) -> dict[str, Any] | None:
    """Return the segmentation's row of the `dvh` table; None in datasets without."""
    dataset = patient.revision.dataset
    if _TABLE not in dataset.manifest.tables:
        return None
    table = dataset.patient_rows(_TABLE, patient.patient_id)
    named = segmentation.named()
    for column in ("grid", "source", "structure", *SEGMENTATION_LABELS):
        value = segmentation.grid if column == "grid" else named.get(column)
        values = table.column(column)
        table = table.filter(pc.is_null(values) if value is None else pc.equal(values, value))
    rows = table.to_pylist()
    return rows[0] if rows else None


def _of_voxels(patient: OpenPatient, segmentation: Segmentation) -> dict[str, Any]:
    box, grid = segmentation.box, patient.grid(segmentation.grid)
    voxel_cc = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000.0
    nothing = {"covered_pct": None, "cumulative_cc": None}
    found = {"volume_cc": segmentation.voxels * voxel_cc}
    if box is None:
        return found | nothing
    mask, dose = _read(patient, segmentation, box)
    share = None
    if "dose" in patient.grids:
        nz, ny, nx = mask.shape
        near = grid.stepped(np.array([s.start for s in box]), np.ones(3), (nz, ny, nx))
        whole = (slice(0, nz), slice(0, ny), slice(0, nx))
        inside = covered(mask, whole, near, patient.grid("dose"))
        share = 100.0 * inside.voxels / segmentation.voxels
        mask, dose = inside.part, None if dose is None else dose[inside.box]
    values = None if dose is None else np.sort(dose[mask], axis=None)
    if values is None or not np.isfinite(values).all():
        return found | nothing | {"covered_pct": share}
    volumes = binned(values, voxel_cc)
    curve = None if volumes is None else volumes.tolist()
    return found | {"covered_pct": share, "cumulative_cc": curve}


def _read(patient: OpenPatient, segmentation: Segmentation, box: Box) -> tuple[Any, Any]:
    """Read a mask and the dose of its grid in a box, past the cache: they may be most of it."""
    reader, array = patient.reader_of(segmentation.array)
    (mask,) = reader.read([(array, segmentation.labels)], box)
    path = f"{segmentation.grid}/dose"
    if path not in patient.store.arrays:
        return mask, None
    return mask, patient.reader.read([(path, {})], box)[0]
