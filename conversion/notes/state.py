"""Notes on converted patients: sizes and times of their source files, to detect changes quickly.

They are in `.conversion/`, not in the stores, because times depend on the machine. If notes are
lost or do not match, files are hashed and compared with the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lundprobe_zarr.conversion.notes.draft import located
from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource
from lundprobe_zarr.dataset.converter_notes import FAILED_NOTES, NOTES, SOURCE_NOTE, failed_before
from lundprobe_zarr.errors import DamagedStoreError, DatasetError
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.names import is_patient_id

#: Patients checked in parallel on remote storage; on a disk, sequential checks are fastest.
_REQUESTS = 16


def _note(patient_id: str) -> str:
    return f"{NOTES}/{patient_id}.json"


def side_digest(patient: PatientSource) -> str:
    """Return a hash of the information on a patient from side files and file names."""
    said = [patient.part, patient.findings, patient.multi_component, patient.geometry]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _state(patient: PatientSource, precision: Precision) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "precision": precision,
        "side": side_digest(patient),
        "strip_headers": patient.strip_headers,
        "files": {f"{patient.folder}/{e.path}": [e.bytes, e.mtime_ns] for e in patient.entries},
        # omitted for 0, as in notes of earlier versions
        **({"levels": patient.levels} if patient.levels else {}),
    }


def remember(dataset: Location, patient: PatientSource, precision: Precision) -> None:
    """Write a note on the sources of a store that was just completed."""
    dataset.write(_note(patient.patient_id), json.dumps(_state(patient, precision)).encode())


def forget(dataset: Location, patient_id: str) -> None:
    """Delete the note on a patient, before its store is replaced."""
    dataset.delete(_note(patient_id))


def remember_source(dataset: Location, inventory: Inventory) -> None:
    """Write the list of all patients of the source, to report missing ones later."""
    patients = {"patients": [p.patient_id for p in inventory.whole]}
    dataset.write(SOURCE_NOTE, json.dumps(patients).encode())


class Failures:
    """Notes on patients whose last conversion failed, with the reason."""

    def __init__(self, dataset: Location) -> None:
        self._dataset = dataset
        self._noted = set(failed_before(dataset))

    def note(self, patient_id: str, error: str | None) -> None:
        """Note a patient's error, or delete the note on an earlier one."""
        name = f"{FAILED_NOTES}/{patient_id}"
        with suppress(DatasetError):  # a full disk, for example, is in the patient's error already
            if error is not None:
                self._dataset.write(name, error.encode())
            elif patient_id in self._noted:
                self._dataset.delete(name)


def are_current(
    dataset: Location,
    patients: Sequence[PatientSource],
    precision: Precision,
    note: bool = True,
    checksum: bool = False,
) -> list[bool]:
    """Return for each patient whether its store is current: see `is_current`."""
    look = partial(is_current, dataset, precision=precision, note=note, checksum=checksum)
    with ThreadPoolExecutor(1 if dataset.is_local else _REQUESTS) as pool:
        return list(pool.map(look, patients))


def is_current(
    dataset: Location | Path,
    patient: PatientSource,
    precision: Precision,
    note: bool = True,
    checksum: bool = False,
) -> bool:
    """Return whether the patient's store exists and was converted from these source files.

    If all sizes and times match, the store is current, unless `checksum` requires comparing
    contents. A file with another time is hashed, and with `note` the new times are written. This
    makes at most three requests to the dataset. Raises `SchemaVersionError` for a newer store.
    """
    dataset = located(dataset)
    if patient.problem is not None or not _exists(dataset, patient.patient_id):
        return False
    noted = None if checksum else _read_state(dataset, patient.patient_id)
    now = _state(patient, precision)
    if noted == now:
        return True
    if noted is not None and noted.get("side") != now["side"]:
        return False
    try:
        if not _same_contents(dataset, patient, precision, noted, now):
            return False
    except (DatasetError, OSError):  # the conversion will report what cannot be read
        return False
    if note:
        remember(dataset, patient, precision)
    return True


def _exists(dataset: Location, patient_id: str) -> bool:
    """Return whether the patient has a store that can be opened."""
    try:
        open_store(dataset, patient_id)
    except DamagedStoreError:  # damaged or missing
        return False
    return True


def _read_state(dataset: Location, patient_id: str) -> dict[str, Any] | None:
    try:
        state = json.loads(dataset.read(_note(patient_id)))
    except (FileNotFoundError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def remembered(dataset: Location) -> dict[str, dict[str, Any]]:
    """Return the note on each converted patient: see `remember`."""
    names = [n.removesuffix(".json") for n in dataset.children(NOTES) if n.endswith(".json")]
    states = {n: _read_state(dataset, n) for n in names if is_patient_id(n)}
    return {patient_id: state for patient_id, state in states.items() if state is not None}


def _same_contents(
    dataset: Location,
    patient: PatientSource,
    precision: Precision,
    noted: dict[str, Any] | None,
    now: dict[str, Any],
) -> bool:
    """Return whether the files' hashes match the store."""
    store = open_store(dataset, patient.patient_id)
    if not _same_settings(store, patient, precision):
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


def _same_settings(store: StoreMetadata, patient: PatientSource, precision: Precision) -> bool:
    attributes = store.attributes
    return (
        attributes["schema_version"] == SCHEMA_VERSION
        and attributes["precision"] == precision
        and attributes.get("side_files_sha256") == side_digest(patient)
        and attributes.get("headers_stripped", False) == patient.strip_headers
        and store.level_count == patient.levels
    )


def _recorded(store: StoreMetadata) -> dict[str, tuple[int, str]]:
    return {r.path: (r.bytes, r.sha256) for _, r in store.records}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
