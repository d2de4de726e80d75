"""Upgrade stores of an older schema in place, from their own metadata.

Voxels are not changed; those of the targets are read, for findings that older versions did not
look for. All metadata is made from the root, which gets its checksum and is written
last. Until then the store has the old schema, and a later upgrade repeats all steps. Readers accept
both forms of the other objects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lundprobe_zarr.conversion.notes.lease import lease_patients
from lundprobe_zarr.conversion.tables.fragments import coverage_of_store
from lundprobe_zarr.dataset.objects import CONSOLIDATED, ROOT, node_document
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.attributes import upgraded
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import write_sound
from lundprobe_zarr.stores.opening import read_sound_store


def upgrade_stores(dataset: Location, patient_ids: Sequence[str]) -> tuple[str, ...]:
    """Upgrade those stores of `patient_ids` that have an older schema; return their patients.

    A store that cannot be read is left unchanged. Raises `UsageError` while one of them is being
    converted, and `DatasetError` if an object cannot be read or written.
    """
    old: dict[str, bytes] = {}
    found: dict[str, list[str]] = {}
    for patient_id in patient_ids:
        with suppress(DamagedStoreError):
            store, text = read_sound_store(dataset, patient_id)
            if store.attributes["schema_version"] < SCHEMA_VERSION:
                found[patient_id] = coverage_of_store(dataset, store)
                old[patient_id] = text
    if old:
        with lease_patients(dataset, old):
            for patient_id, text in old.items():
                root = json.loads(text)
                root["attributes"]["findings"] += found[patient_id]
                _upgrade(dataset, store_path(patient_id), root)
    return tuple(old)


def _upgrade(dataset: Location, store: str, root: dict[str, Any]) -> None:
    """Write the metadata of every node, then the root with the consolidated metadata."""
    consolidated = root[CONSOLIDATED]
    for path in consolidated["metadata"]:
        node = upgraded(node_document(path, consolidated), path)
        write_sound(dataset, f"{store}/{path}/{ROOT}", _text(node))
    root = upgraded(root)
    add_checksum(root, root["attributes"])
    write_sound(dataset, f"{store}/{ROOT}", _text(root))


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
