"""Upgrade stores of an older schema in place, from their own metadata, or add `ome` to them.

Voxels are not changed. The targets are read for findings that older versions did not look for, and
some slices of the T2w image for its display window in `ome`. All metadata is derived from the root,
which gets its checksum and is written last. Until then the store has its old schema, and a later
upgrade repeats all steps. Readers accept both forms of the other
objects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lundprobe_zarr.conversion.notes.lease import lease_patients
from lundprobe_zarr.conversion.tables.fragments import coverage_of_store
from lundprobe_zarr.dataset.objects import ROOT, node_document
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.measures.window import display_window, middle_slices
from lundprobe_zarr.schema.attributes import upgraded
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.levels import whole_metadata
from lundprobe_zarr.schema.ome import OME_MARK, with_ome
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import write_verified
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import read_verified_store
from lundprobe_zarr.stores.reader import Part, StoreReader


def upgrade_stores(dataset: Location, patient_ids: Sequence[str]) -> tuple[str, ...]:
    """Upgrade stores that have an older schema or no attribute `ome`; return their patients.

    A store that cannot be read is left unchanged. Raises `UsageError` while one of them is being
    converted, and `DatasetError` if an object cannot be read or written.
    """
    old: dict[str, dict[str, Any]] = {}
    for patient_id in patient_ids:
        with suppress(DamagedStoreError):
            store, text = read_verified_store(dataset, patient_id)
            root = json.loads(text)
            if store.attributes["schema_version"] < SCHEMA_VERSION:
                root["attributes"]["findings"] += coverage_of_store(dataset, store)
            elif OME_MARK in root["attributes"]:
                continue
            root = upgraded(root)
            root["attributes"] = with_ome(root["attributes"], _t2w_window(dataset, store))
            old[patient_id] = root
    if old:
        with lease_patients(dataset, old):
            for patient_id, root in old.items():
                _write(dataset, store_path(patient_id), root)
    return tuple(old)


def _t2w_window(dataset: Location, store: StoreMetadata) -> tuple[float, float] | None:
    """Return the window of the T2w image, as conversion finds it.

    None without such an image, or if it is damaged: `validate` reports damage, and `ome` then
    uses the range of the image.
    """
    path, group = "mri/image", "mri"
    if path not in store.arrays or "T2w" not in store.labels(group)["modality"]:
        return None
    index = (store.labels(group)["modality"].index("T2w"),)
    box = middle_slices(store.arrays[path].volume_shape)
    try:
        (slices,) = StoreReader(dataset, store).read_parts([Part(path, index, box)])
    except DamagedStoreError:
        return None
    return display_window(slices)


def _write(dataset: Location, store: str, root: dict[str, Any]) -> None:
    """Write the metadata of every node, then the root with the consolidated metadata."""
    consolidated = whole_metadata(root)
    for path in consolidated["metadata"]:
        write_verified(dataset, f"{store}/{path}/{ROOT}", _text(node_document(path, consolidated)))
    add_checksum(root, root["attributes"])
    write_verified(dataset, f"{store}/{ROOT}", _text(root))


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode()
