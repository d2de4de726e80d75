"""Convert one patient: read, write, verify, then move the store to its final name."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from lundprobe_zarr.conversion.arrays.levels import require_room
from lundprobe_zarr.conversion.arrays.metadata import write_metadata
from lundprobe_zarr.conversion.arrays.plan import ArrayPlan, plan_store
from lundprobe_zarr.conversion.arrays.volumes import Contents, VolumeWriter, require_witnesses
from lundprobe_zarr.conversion.notes.draft import Draft, drafted, located, written_to
from lundprobe_zarr.conversion.notes.state import forget, remember, side_digest
from lundprobe_zarr.conversion.source.inventory import PatientSource
from lundprobe_zarr.conversion.source.side_files import CSV_TOLERANCE_MM
from lundprobe_zarr.conversion.source.workspace import Workspace
from lundprobe_zarr.conversion.tables.fragments import save_fragments
from lundprobe_zarr.conversion.tables.measure import Row, component_findings
from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.geometry.affine import spacing
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.storage.failures import described
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.files import structure_of_name
from lundprobe_zarr.vocabulary.names import STRUCTURES, protocol_of
from lundprobe_zarr.vocabulary.version import package_version

Progress = Callable[[int], None]


@dataclass(frozen=True)
class PatientResult:
    """Result of a patient's conversion: `status` is `converted`, `skipped` or `failed`."""

    patient_id: str
    status: str
    source_bytes: int
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as a row of the report."""
        return asdict(self)


def convert_patient(
    patient: PatientSource,
    dataset: Location | Path,
    precision: Precision,
    progress: Progress = lambda n: None,
    scratch: Path | None = None,
    workspace: Workspace | None = None,
) -> PatientResult:
    """Convert one patient into `dataset`; a failure does not affect other patients.

    An earlier store of this patient stays until the new one is complete and verified. Bad input, a
    full disk or a failing bucket never raise: the result has the status `failed` and the reason.
    A store for a bucket is first written to `scratch`. `workspace` is the buffer pool of the
    previous patient.
    """
    started = time.perf_counter()
    try:
        with drafted(located(dataset), patient.patient_id, scratch) as draft:
            writer = VolumeWriter(
                draft.folder, patient, precision, progress, workspace or Workspace()
            )
            findings = _convert(patient, draft, precision, writer)
    except (LundProbeError, OSError, MemoryError) as error:
        return PatientResult(
            patient.patient_id,
            "failed",
            patient.bytes,
            time.perf_counter() - started,
            error=_reason(error, patient.folder, written_to(located(dataset), scratch)),
        )
    seconds = time.perf_counter() - started
    return PatientResult(patient.patient_id, "converted", patient.bytes, seconds, findings)


def _reason(error: BaseException, folder: str, place: str) -> str:
    if isinstance(error, LundProbeError):
        return str(error)
    if isinstance(error, OSError):
        return f"{folder}: could not be converted: {described(error, place)}"
    return (
        f"{folder}: could not be converted ({type(error).__name__}: {error}); try fewer --workers, "
        "or a machine with more memory"
    )


def _convert(
    patient: PatientSource, draft: Draft, precision: Precision, writer: VolumeWriter
) -> tuple[str, ...]:
    if patient.problem is not None:
        raise LundProbeError(patient.problem)
    findings, rows = _write_store(patient, draft.folder, precision, writer)
    sha256 = hashlib.sha256((draft.folder / "zarr.json").read_bytes()).hexdigest()
    forget(draft.dataset, patient.patient_id)
    # They contain the store's hash, so they may be written before it.
    save_fragments(draft.dataset, patient.patient_id, sha256, rows)
    draft.appear()
    remember(draft.dataset, patient, precision)
    return findings


def _write_store(
    patient: PatientSource, folder: Path, precision: Precision, writer: VolumeWriter
) -> tuple[tuple[str, ...], dict[str, list[Row]]]:
    # Images and uncertainty need the most memory, so they come first, before a dose is kept. The
    # planned dose comes next, because masks are measured on its grid.
    writer.read_fiducials()
    for plan in sorted(plan_store(patient), key=_turn):
        writer.write(plan)
        require_room(writer.contents.grids[plan.spec.grid].shape, patient.levels, plan.spec.path)
    contents = writer.contents
    found = component_findings(writer.measurements.components(), listed_structures(patient))
    found += writer.measurements.coverage_findings()
    findings = (*patient.findings, *contents.findings, *found)
    attributes = _root_attributes(patient, contents, precision, findings)
    write_metadata(folder, contents, attributes, patient.levels)
    require_witnesses(
        contents.arrays,
        zarr.open_group(LocalStore(folder, read_only=True), mode="r"),
        patient.patient_id,
    )
    grid = contents.grids["mri"]
    return findings, writer.measurements.rows(grid.shape, grid.affine)


def _turn(plan: ArrayPlan) -> tuple[bool, bool]:
    return plan.spec.is_mask or plan.is_dose, plan.spec.group != "dose"


def _root_attributes(
    patient: PatientSource, contents: Contents, precision: Precision, findings: tuple[str, ...]
) -> dict[str, Any]:
    listed = patient.multi_component
    return {
        "patient_id": patient.patient_id,
        "part": patient.part,
        "protocol": protocol_of(patient.patient_id),
        "precision": precision,
        "schema_version": SCHEMA_VERSION,
        "converter": f"lundprobe-zarr {package_version()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthetic": contents.synthetic,
        "headers_stripped": patient.strip_headers,
        "multi_component_structures": list(listed_structures(patient) or ()),
        "multi_component_files": None if listed is None else list(listed),
        "geometry_matches_csv": geometry_matches(patient, contents),
        "findings": list(findings),
        "side_files_sha256": side_digest(patient),
    }


def listed_structures(patient: PatientSource) -> tuple[str, ...] | None:
    """Return the clinical structures listed with several components, on any grid."""
    if patient.multi_component is None:
        return None
    named = {structure_of_name(path.rpartition("/")[2]) for path in patient.multi_component}
    return tuple(s for s in STRUCTURES if s in named)


def geometry_matches(patient: PatientSource, contents: Contents) -> bool | None:
    """Return whether the authors' table agrees with the grids; None without a readable row."""
    if patient.geometry is None:
        return None
    for grid, (shape, voxel_mm) in patient.geometry.items():
        found = contents.grids.get(grid)
        if found is None or found.shape != shape:
            return False
        if np.abs(spacing(found.affine)[::-1] - voxel_mm).max() > CSV_TOLERANCE_MM:
            return False
    return True
