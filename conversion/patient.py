"""Convert one patient: read, write beside, verify, then let the store appear under its name."""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.vocabulary.geometry import spacing
from lundprobe_zarr.vocabulary.names import protocol_of
from lundprobe_zarr.vocabulary.version import package_version

from .fragments import save_fragments
from .inventory import PatientSource
from .measure import Row, component_findings
from .metadata import write_metadata
from .plan import plan_store
from .sidefiles import CSV_TOLERANCE_MM
from .state import forget, remember, side_digest
from .write import Contents, VolumeWriter, require_witnesses

Progress = Callable[[int], None]


@dataclass(frozen=True)
class PatientResult:
    """How a patient's conversion went: `status` is `converted`, `skipped` or `failed`."""

    patient_id: str
    status: str
    source_bytes: int
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as a row of the report."""
        return asdict(self)


def convert_patient(
    patient: PatientSource, dataset: Path, precision: Precision, progress: Progress = lambda n: None
) -> PatientResult:
    """Convert one patient into `dataset`; a patient that cannot be converted fails alone.

    Whatever was converted of this patient before stays until the new store is complete and
    verified. Never raises for bad input or a full disk: the result says `failed` and why.
    """
    started = time.perf_counter()
    try:
        findings = _convert(patient, dataset, precision, progress)
    except (LundProbeError, OSError, MemoryError) as error:
        return PatientResult(
            patient.patient_id,
            "failed",
            patient.bytes,
            time.perf_counter() - started,
            error=_reason(error, patient.folder),
        )
    seconds = time.perf_counter() - started
    return PatientResult(patient.patient_id, "converted", patient.bytes, seconds, findings)


def _reason(error: BaseException, folder: str) -> str:
    if isinstance(error, LundProbeError):
        return str(error)
    remedy = (
        "try fewer --workers, or a machine with more memory"
        if isinstance(error, MemoryError)
        else "check the disks' space and permissions, then run again"
    )
    return f"{folder}: could not be converted ({type(error).__name__}: {error}); {remedy}"


def _convert(
    patient: PatientSource, dataset: Path, precision: Precision, progress: Progress
) -> tuple[str, ...]:
    if patient.problem is not None:
        raise LundProbeError(patient.problem)
    final = dataset / store_path(patient.patient_id)
    remove_leftovers(final)
    folder = final.with_name(_partial_name(final))
    folder.mkdir(parents=True)
    try:
        findings, rows = _write_store(patient, folder, precision, progress)
        forget(dataset, patient.patient_id)
        _replace(folder, final)
        save_fragments(dataset, patient.patient_id, rows)
        remember(dataset, patient, precision)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return findings


def _write_store(
    patient: PatientSource, folder: Path, precision: Precision, progress: Progress
) -> tuple[tuple[str, ...], dict[str, list[Row]]]:
    writer = VolumeWriter(folder, patient, precision, progress)
    # Images and uncertainty first, which take most memory: no dose is kept for masks yet.
    for plan in sorted(plan_store(patient), key=lambda p: p.spec.is_mask or p.is_dose):
        writer.write(plan)
    writer.read_fiducials()
    contents = writer.contents
    found = component_findings(writer.measurements.components(), patient.multi_component)
    findings = (*patient.findings, *contents.findings, *found)
    write_metadata(folder, contents, _root_attributes(patient, contents, precision, findings))
    require_witnesses(contents.arrays, zarr.open_group(str(folder), mode="r"), patient.patient_id)
    grid = contents.grids["mri"]
    return findings, writer.measurements.rows(grid.shape, grid.affine)


def _root_attributes(
    patient: PatientSource, contents: Contents, precision: Precision, findings: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "patient_id": patient.patient_id,
        "part": patient.part,
        "protocol": protocol_of(patient.patient_id),
        "precision": precision,
        "schema_version": SCHEMA_VERSION,
        "converter": f"lundprobe-zarr {package_version()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "synthetic": contents.synthetic,
        "multi_component_structures": list(patient.multi_component or ()),
        "geometry_matches_csv": geometry_matches(patient, contents),
        "findings": list(findings),
        "side_files_sha256": side_digest(patient),
    }


def geometry_matches(patient: PatientSource, contents: Contents) -> bool | None:
    """Whether the authors' table agrees with the files' grids; None without a readable row."""
    if patient.geometry is None:
        return None
    for grid, (shape, voxel_mm) in patient.geometry.items():
        there = contents.grids.get(grid)
        if there is None or there.shape != shape:
            return False
        if np.abs(spacing(there.affine)[::-1] - voxel_mm).max() > CSV_TOLERANCE_MM:
            return False
    return True


_PARTIAL, _REPLACED = ".partial-", ".replaced-"


def _partial_name(final: Path) -> str:
    """Name of a store being written: says who writes it, so that the dead can be told."""
    return f".{final.name}{_PARTIAL}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def remove_leftovers(final: Path) -> None:
    """Clear what a killed conversion of this patient left; put back a store it had moved away."""
    for old in final.parent.glob(f".{final.name}{_REPLACED}*"):
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for partial in final.parent.glob(f".{final.name}{_PARTIAL}*"):
        if _is_abandoned(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _is_abandoned(partial: Path) -> bool:
    host, pid, _ = partial.name.split(_PARTIAL)[1].rsplit("-", 2)
    if host == socket.gethostname():
        return not _alive(int(pid))
    return time.time() - partial.stat().st_mtime > _STALE_SECONDS


#: A store of another host that has not changed for a day is taken for abandoned.
_STALE_SECONDS = 86_400


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(folder: Path, final: Path) -> None:
    """Let a complete store appear under its name; the old one goes only once it has."""
    _sync_tree(folder)
    old = None
    if final.exists():
        old = final.with_name(f".{final.name}{_REPLACED}{uuid.uuid4().hex[:8]}")
        final.rename(old)
    folder.rename(final)
    _sync(final.parent)
    if old is not None:
        shutil.rmtree(old)


def _sync_tree(folder: Path) -> None:
    """Bring a store down to the device, files before the folders that name them."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
