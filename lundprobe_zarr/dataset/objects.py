"""The names of all objects of a dataset, from what it says of itself: where nothing is listed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import google_crc32c

from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import UNSOUND, parse_store, unsound
from lundprobe_zarr.stores.opening import read_store
from lundprobe_zarr.stores.place import StorePlace

#: What a dataset may hold beside manifest, tables and stores.
SIDE_FILES = ("README.md", "catalog.yaml", "croissant.json")
#: A store's consolidated metadata: without it there is no store.
ROOT = "zarr.json"
CONSOLIDATED = "consolidated_metadata"
CRC_BYTES = 4


@dataclass(frozen=True)
class StoreObject:
    """One object of a store: its name there, and by what it is known to be whole.

    That is size and SHA-256 of a shard; what the root says of the `node` that a group's or array's
    metadata is of; and for small arrays a checksum at their end, if they are `checked`.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    node: Mapping[str, Any] | None = None
    checked: bool = False

    @property
    def is_metadata(self) -> bool:
        """Whether a group or array can be opened by it."""
        return is_metadata(self.name)

    def finding(self, data: bytes) -> str | None:
        """What shows that `data` is not the object as it was written; None if nothing does."""
        if self.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            size = "" if self.size is None else f"{self.size} bytes, "
            return (
                f"{len(data)} bytes that are not those written at conversion ({size}SHA-256 "
                f"{self.sha256})"
            )
        if self.node is not None and not _says(data, self.node):
            return f"does not say what the store's root {ROOT} says of it"
        crc = int(google_crc32c.value(data[:-CRC_BYTES])).to_bytes(CRC_BYTES, "little")
        if self.checked and crc != data[-CRC_BYTES:]:
            return f"{len(data)} bytes that fail their checksum"
        return None


def _says(data: bytes, node: Mapping[str, Any]) -> bool:
    try:
        found = json.loads(data)
    except ValueError:
        return False
    # Groups are consolidated in their own right, too; early versions' were not.
    alone = isinstance(found, dict) and found.get(CONSOLIDATED) is None
    return bool(found == node or (alone and _alone(found) == _alone(node)))


def _alone(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k != CONSOLIDATED}


def is_metadata(name: str) -> bool:
    """Whether the object of a store called `name` is the metadata of a group or array."""
    return name.rpartition("/")[2] == ROOT


def table_files(manifest: Manifest) -> list[str]:
    """Files of all tables, relative to the dataset."""
    files = [f for parts in manifest.tables.values() for files in parts.values() for f in files]
    return files if manifest.cohort is None else [*files, manifest.cohort]


def store_objects(text: bytes, where: StorePlace) -> list[StoreObject]:
    """Every object of the store whose root `zarr.json` is `text`, but for that itself.

    Raises `DamagedStoreError` if that is not the metadata of a complete store.
    """
    store = parse_store(text, where)
    shards = [
        StoreObject(key, record.stored_bytes, record.stored_sha256)
        for _, record, key in store.shards()
        if record.stored_bytes
    ]
    consolidated = json.loads(text)[CONSOLIDATED]
    nodes = consolidated["metadata"]
    try:
        small = [
            small
            for path in nodes
            for small in _of_node(path, in_its_own_right(path, consolidated), store.arrays)
        ]
    except UNSOUND as error:
        raise unsound(where, error) from error
    return [*small, *shards]


def in_its_own_right(path: str, consolidated: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node as its own `zarr.json` has it: a group with what the root says of all below it."""
    nodes = consolidated["metadata"]
    node: Mapping[str, Any] = nodes[path]
    if node["node_type"] != "group":
        return node
    inner = {n.removeprefix(f"{path}/"): v for n, v in nodes.items() if n.startswith(f"{path}/")}
    return {**node, CONSOLIDATED: {**consolidated, "metadata": inner}}


def _of_node(
    path: str, node: Mapping[str, Any], volumes: Mapping[str, Any]
) -> Iterator[StoreObject]:
    yield StoreObject(f"{path}/{ROOT}", node=node)
    if node["node_type"] != "array" or path in volumes:
        return
    chunk = node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (range(math.ceil(n / c)) for n, c in zip(node["shape"], chunk, strict=True))
    checked = node["codecs"][-1]["name"] == "crc32c"
    for place in product(*counts):
        yield StoreObject("/".join((path, "c", *map(str, place))), checked=checked)


def object_sizes(location: Location, patient_id: str) -> dict[str, int]:
    """Size of every object of a patient's store, by name there.

    Listed where that is possible, which shows strangers too; else asked for one by one, by the
    names that the store's metadata gives. Raises `DamagedStoreError` if that cannot be read.
    """
    place = store_path(patient_id)
    if location.can_list:
        return location.find(place)
    text, where = read_store(location, patient_id)
    names = [ROOT, *(o.name for o in store_objects(text, where))]
    found = location.sizes(f"{place}/{name}" for name in names)
    return {name.removeprefix(f"{place}/"): size for name, size in found.items()}
