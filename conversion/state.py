"""What was converted from what: sizes and times of source files, to tell the unchanged at once.

Kept beside the stores in `.conversion/`, not in them: times are the machine's, not the data's.
Lost or stale state is never trusted blindly: files are then hashed and compared with the store.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.store.metadata import StoreMetadata, parse_store

from .inventory import PatientSource

_FOLDER = ".conversion"


def _state_file(dataset: Path, patient_id: str) -> Path:
    return dataset / _FOLDER / f"{patient_id}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def side_digest(patient: PatientSource) -> str:
    """Digest of what the side files and names say of a patient, beyond its files' contents."""
    said = [patient.part, patient.findings, patient.multi_component, patient.geometry]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _state(patient: PatientSource, precision: Precision) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "precision": precision,
        "side": side_digest(patient),
        "files": {f"{patient.folder}/{e.path}": [e.bytes, e.mtime_ns] for e in patient.entries},
    }


def remember(dataset: Path, patient: PatientSource, precision: Precision) -> None:
    """Note what a store that has just appeared was converted from."""
    path = _state_file(dataset, patient.patient_id)
    write_atomically(path, json.dumps(_state(patient, precision)))


def forget(dataset: Path, patient_id: str) -> None:
    """Drop the note on a patient, before its store is replaced."""
    _state_file(dataset, patient_id).unlink(missing_ok=True)


def is_current(
    dataset: Path, patient: PatientSource, precision: Precision, note: bool = True
) -> bool:
    """Whether the patient's store is there and was converted from just these source files.

    Sizes and times decide when they all agree; a file whose time alone differs is hashed, and
    the new times are noted unless `note` is off.
    """
    root = dataset / store_path(patient.patient_id) / "zarr.json"
    if patient.problem is not None or not root.is_file():
        return False
    noted = _read_state(_state_file(dataset, patient.patient_id))
    now = _state(patient, precision)
    if noted == now:
        return True
    if noted is not None and noted.get("side") != now["side"]:
        return False
    try:
        if not _same_contents(root, patient, precision, noted, now):
            return False
    except (DatasetError, OSError):  # the conversion will say what cannot be read
        return False
    if note:
        remember(dataset, patient, precision)
    return True


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _same_contents(
    root: Path,
    patient: PatientSource,
    precision: Precision,
    noted: dict[str, Any] | None,
    now: dict[str, Any],
) -> bool:
    """Whether hashes prove what sizes and times could not."""
    store = parse_store(root.read_bytes(), str(root.parent))
    if not _same_circumstances(store, patient, precision):
        return False
    recorded = _recorded(store)
    if {p: b for p, (b, _) in now["files"].items()} != {p: b for p, (b, _) in recorded.items()}:
        return False
    unchanged = noted["files"] if noted and isinstance(noted.get("files"), dict) else {}
    return all(
        unchanged.get(path) == now["files"][path] or _sha256(entry.file) == recorded[path][1]
        for entry in patient.entries
        for path in [f"{patient.folder}/{entry.path}"]
    )


def _same_circumstances(store: StoreMetadata, patient: PatientSource, precision: Precision) -> bool:
    attributes = store.attributes
    return (
        attributes["schema_version"] == SCHEMA_VERSION
        and attributes["precision"] == precision
        and attributes.get("side_files_sha256") == side_digest(patient)
    )


def _recorded(store: StoreMetadata) -> dict[str, tuple[int, str]]:
    return {r.path: (r.bytes, r.sha256) for _, r in store.records}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
