"""Derive the names of a dataset's objects from its metadata, for storage without listings."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from lundprobe_zarr.schema.document import CRC_BYTES, crc32c, sha256_of
from lundprobe_zarr.schema.levels import whole_metadata
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import UNSOUND, parse_store, unsound
from lundprobe_zarr.stores.opening import read_store
from lundprobe_zarr.stores.place import StorePlace

#: Files of a dataset besides manifest, tables and stores.
SIDE_FILES = ("README.md", "catalog.yaml", "croissant.json")
#: A store's root with its consolidated metadata. A store without it is incomplete.
ROOT = "zarr.json"
CONSOLIDATED = "consolidated_metadata"


@dataclass(frozen=True)
class StoreObject:
    """One object of a store: its name, and the means to check it.

    A shard has a size and a SHA-256. Metadata of a group or array has the `node` of the root's
    consolidated metadata. A `checked` chunk of a small array ends with a CRC32C checksum.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    node: Mapping[str, Any] | None = None
    checked: bool = False

    @property
    def is_metadata(self) -> bool:
        """Whether it is the metadata of a group or array."""
        return is_metadata(self.name)

    def finding(self, data: bytes) -> str | None:
        """Return what differs between `data` and the object as written; None if nothing."""
        if self.sha256 not in (None, sha256_of(data)):
            size = "" if self.size is None else f"{self.size} bytes, "
            return (
                f"{len(data)} bytes that differ from those written at conversion ({size}SHA-256 "
                f"{self.sha256})"
            )
        if self.node is not None and not _says(data, self.node):
            return f"does not say what the store's root {ROOT} says of it"
        if self.checked and crc32c(data[:-CRC_BYTES]) != data[-CRC_BYTES:]:
            return f"{len(data)} bytes that fail their checksum"
        return None


def _says(data: bytes, node: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(data)
    except ValueError:
        return False
    # Groups have consolidated metadata too, except for those of early versions.
    plain = isinstance(found, dict) and found.get(CONSOLIDATED) is None
    return bool(found == node or (plain and _unconsolidated(found) == _unconsolidated(node)))


def _unconsolidated(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != CONSOLIDATED}


def is_metadata(name: str) -> bool:
    """Return whether a store's object `name` is the metadata of a group or array."""
    return name.rpartition("/")[2] == ROOT


def table_files(manifest: Manifest) -> list[str]:
    """Return the files of all tables, relative to the dataset."""
    files = [f for parts in manifest.tables.values() for files in parts.values() for f in files]
    return files if manifest.cohort is None else [*files, manifest.cohort]


def store_objects(text: bytes, where: StorePlace) -> list[StoreObject]:
    """Return every object of the store with the root `zarr.json` `text`, except for that root.

    Raises `DamagedStoreError` if `text` is not the metadata of a complete store.
    """
    store = parse_store(text, where)
    shards = [
        StoreObject(key, record.stored_bytes, record.stored_sha256)
        for _, record, key in store.shards()
        if record.stored_bytes
    ]
    shards += [StoreObject(s.key, s.bytes, s.sha256) for s in store.level_shards() if s.bytes]
    volumes = {*store.arrays} | {shard.key.partition("/c/")[0] for shard in store.level_shards()}
    try:
        consolidated = whole_metadata(json.loads(text))
        nodes = consolidated["metadata"]
        small = [
            small
            for path in nodes
            for small in _of_node(path, node_document(path, consolidated), volumes)
        ]
    except UNSOUND as error:
        raise unsound(where, error) from error
    return [*small, *shards]


def node_document(path: str, consolidated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the contents of a node's own `zarr.json`; a group's has all nodes below it."""
    nodes = consolidated["metadata"]
    node: Mapping[str, Any] = nodes[path]
    if node["node_type"] != "group":
        return node
    inner = {n.removeprefix(f"{path}/"): v for n, v in nodes.items() if n.startswith(f"{path}/")}
    return {**node, CONSOLIDATED: {**consolidated, "metadata": inner}}


def _of_node(path: str, node: Mapping[str, Any], volumes: Container[str]) -> Iterator[StoreObject]:
    yield StoreObject(f"{path}/{ROOT}", node=node)
    if node["node_type"] != "array" or path in volumes:
        return
    chunk = node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (range(math.ceil(n / c)) for n, c in zip(node["shape"], chunk, strict=True))
    checked = node["codecs"][-1]["name"] == "crc32c"
    for index in product(*counts):
        yield StoreObject("/".join((path, "c", *map(str, index))), checked=checked)


def object_sizes(location: Location, patient_id: str) -> dict[str, int]:
    """Return the size of every object of a patient's store, by name.

    The store is listed where possible, which includes unknown objects. Otherwise each name in the
    store's metadata is requested. Raises `DamagedStoreError` if the metadata cannot be read.
    """
    folder = store_path(patient_id)
    if location.can_list:
        return location.find(folder)
    text, where = read_store(location, patient_id)
    names = [ROOT, *(o.name for o in store_objects(text, where))]
    found = location.sizes(f"{folder}/{name}" for name in names)
    return {name.removeprefix(f"{folder}/"): size for name, size in found.items()}
