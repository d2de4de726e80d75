"""Locations of structures from the tables; no mask is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.patches.sampling import (
    BalancedSampling,
    CentredSampling,
    Sampling,
    SliceSampling,
)

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

#: Voxels (k, 3) of a structure on the MRI grid (z, y, x).
Voxels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Locations:
    """Foreground voxels by structure, centroids (mm, LPS) and axial slices, by patient id."""

    foreground: dict[str, dict[str, Voxels]] = field(default_factory=dict)
    centroids: dict[str, FloatArray] = field(default_factory=dict)
    slices: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def locations_of(cohort: Cohort, grid: str, sampling: Sampling) -> Locations:
    """Read the locations that `sampling` needs.

    Raise `MissingStructureError` if no patient of the cohort has a structure it needs.
    """
    if isinstance(sampling, BalancedSampling):
        return Locations(foreground=_foreground(cohort, sampling.structures))
    if isinstance(sampling, CentredSampling):
        return Locations(centroids=_centroids(cohort, grid, sampling.structure))
    if isinstance(sampling, SliceSampling) and sampling.having:
        return Locations(slices=_slices(cohort, grid, sampling.having))
    return Locations()


def patients_with(cohort: Cohort, grid: str, structure: str) -> list[str]:
    """Return ids of patients with a clinical mask of a structure on the `mri` or `sct` grid."""
    if grid == "mri":
        table = cohort.dataset.columns("patients", ["patient_id", f"missing_{structure}"])
        there = table.filter(pc.invert(table.column(1))).column(0)
    else:
        there = clinical_rows(cohort, grid, structure, []).column("patient_id")
    known = set(there.to_pylist())
    return [i for i in cohort.ids if i in known]


def clinical_rows(cohort: Cohort, grid: str, structure: str, fields: Sequence[str]) -> pa.Table:
    """Return `patient_id` and fields of a clinical structure's rows, for the cohort's patients."""
    table = cohort.dataset.columns(
        "structures", ["patient_id", "grid", "source", "structure", *fields]
    )
    wanted = {"grid": grid, "source": "clinical", "structure": structure}
    for column, value in wanted.items():
        table = table.filter(pc.equal(table.column(column), value))
    return _of(cohort, table)


def _of(cohort: Cohort, table: pa.Table) -> pa.Table:
    """Return the rows of the cohort's patients."""
    return table.filter(pc.is_in(table.column("patient_id"), value_set=pa.array(cohort.ids)))


def _foreground(cohort: Cohort, structures: Sequence[str]) -> dict[str, dict[str, Voxels]]:
    columns = ("patient_id", "structure", "indices")
    table = _of(cohort, cohort.dataset.columns("foreground", columns))
    table = table.filter(pc.is_in(table.column("structure"), value_set=pa.array(structures)))
    found: dict[str, dict[str, Voxels]] = {}
    rows = zip(*(table.column(c) for c in columns), strict=True)
    for patient_id, structure, indices in rows:
        voxels = indices.values.flatten().to_numpy().reshape(-1, 3).astype(np.int32)
        found.setdefault(patient_id.as_py(), {})[structure.as_py()] = voxels
    for structure in structures:
        if not any(len(of.get(structure, ())) for of in found.values()):
            raise _nobody(cohort, structure, "mri")
    return found


def _centroids(cohort: Cohort, grid: str, structure: str) -> dict[str, FloatArray]:
    masks = "sct" if grid == "dose" else grid  # the dose grid has no masks of its own
    table = clinical_rows(cohort, masks, structure, ["centroid_mm"])
    rows = zip(*(table.column(c).to_pylist() for c in ("patient_id", "centroid_mm")), strict=True)
    found = {i: np.array(mm, np.float64) for i, mm in rows if mm is not None}
    if not found:
        raise _nobody(cohort, structure, masks)
    return found


def _slices(cohort: Cohort, grid: str, structure: str) -> dict[str, npt.NDArray[np.int64]]:
    if grid != "mri":
        raise UsageError(
            f"slices with {structure} on grid {grid!r}",
            expected="grid='mri', the grid of the slices table",
        )
    column = f"voxels_{structure}"
    table = _of(cohort, cohort.dataset.columns("slices", ["patient_id", "z_index", column]))
    table = table.filter(pc.greater(table.column(column), 0))
    if not len(table):
        raise _nobody(cohort, structure, grid)
    found: dict[str, list[int]] = {i: [] for i in cohort.ids}
    rows = zip(*(table.column(c).to_pylist() for c in ("patient_id", "z_index")), strict=True)
    for patient_id, z in rows:
        found[patient_id].append(z)
    return {i: np.sort(np.array(z, np.int64)) for i, z in found.items()}


def require_available(cohort: Cohort, grid: str, structures: Sequence[str]) -> None:
    """Raise `MissingStructureError` for a structure that no patient of the cohort has."""
    for structure in structures:
        if not patients_with(cohort, grid, structure):
            raise _nobody(cohort, structure, grid)


def require_extended(cohort: Cohort) -> None:
    """Raise `MissingStructureError` for a cohort without a patient of the extended part."""
    parts = cohort.table("patients").column("part").to_pylist()
    if parts and "extended" not in parts:
        raise MissingStructureError(
            f"none of the {len(cohort)} patients of this cohort has networks' or observers' masks",
            expected="at least one patient of the extended part",
            remedy="choose others, e.g. with cohort.where(\"part = 'extended'\")",
        )


def _nobody(cohort: Cohort, structure: str, grid: str) -> MissingStructureError:
    return MissingStructureError(
        f"none of the {len(cohort)} patients of this cohort has a voxel of "
        f"{structure} on the {grid} grid",
        remedy=f'choose others, e.g. with cohort.where("NOT missing_{structure}")',
    )
