"""Structures in the tables: locations without reading masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.vocabulary.suggest import require_structure, unknown_label

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort, Patient


def clinical_row(patient: Patient, structure: str, grid: str) -> dict[str, Any]:
    """Return the row of a patient's clinical structure on the `mri` or `sct` grid.

    Raise `UnknownLabelError` for an unknown structure, `MissingStructureError` for one that the
    patient lacks.
    """
    table = patient.structures
    rows = table[(table["source"] == "clinical") & (table["grid"] == grid)]
    found = rows[rows["structure"] == structure]
    if len(found):
        return dict(found.iloc[0])
    raise missing(
        "structure", structure, rows["structure"], f"patient {patient.patient_id}, {grid} grid,"
    )


def centroids(cohort: Cohort, structure: str) -> dict[str, Any]:
    """Return centroids (z, y, x), mm, LPS, of a clinical structure on the MRI grid, by patient id.

    Missing and empty masks have no entry. Raise `UnknownLabelError` for an unknown structure.
    """
    require_structure(structure)
    table = cohort.sql(
        "SELECT patient_id, centroid_mm FROM structures WHERE grid = 'mri' AND source = 'clinical' "
        f"AND structure = '{structure}' AND centroid_mm IS NOT NULL"
    )
    return dict(zip(table["patient_id"], table["centroid_mm"], strict=True))


def missing(dim: str, label: object, there: Iterable[object], where: str) -> UnknownLabelError:
    """Return the error for a label of `dim` that is not `there`: missing or unknown."""
    real = LABEL_ORDER[dim]
    if label not in real:
        return unknown_label(dim, label, real)
    return MissingStructureError(
        f"{dim} {label!r} is missing: {where} has no such data",
        remedy=f"there are {', '.join(map(str, there)) or 'none'}",
    )
