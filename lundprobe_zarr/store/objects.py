"""The names of all objects of a dataset, from what it says of itself: where nothing is listed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.store.dataset import read_store
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.metadata import UNSOUND, parse_store, unsound

#: What a dataset may hold beside manifest, tables and stores.
SIDE_FILES = ("README.md", "catalog.yaml", "croissant.json")
#: A store's consolidated metadata: without it there is no store.
ROOT = "zarr.json"


@dataclass(frozen=True)
class StoreObject:
    """One object of a store: its name there; its size and SHA-256, recorded of shards alone."""

    name: str
    size: int | None = None
    sha256: str | None = None

    @property
    def is_metadata(self) -> bool:
        """Whether a group or array can be opened by it."""
        return is_metadata(self.name)


def is_metadata(name: str) -> bool:
    """Whether the object of a store called `name` is the metadata of a group or array."""
    return name.rpartition("/")[2] == ROOT


def table_files(manifest: Manifest) -> list[str]:
    """Files of all tables, relative to the dataset."""
    files = [f for parts in manifest.tables.values() for files in parts.values() for f in files]
    return files if manifest.cohort is None else [*files, manifest.cohort]


def store_objects(text: bytes, where: str) -> list[StoreObject]:
    """Every object of the store whose root `zarr.json` is `text`, but for that itself.

    Raises `DamagedStoreError` if that is not the metadata of a complete store.
    """
    store = parse_store(text, where)
    shards = [
        StoreObject(key, record.stored_bytes, record.stored_sha256)
        for _, record, key in store.shards()
        if record.stored_bytes
    ]
    nodes = json.loads(text)["consolidated_metadata"]["metadata"]
    try:
        small = [name for path, n in nodes.items() for name in _of_node(path, n, store.arrays)]
    except UNSOUND as error:
        raise unsound(where, error) from error
    return [*(StoreObject(name) for name in small), *shards]


def _of_node(path: str, node: Mapping[str, Any], volumes: Mapping[str, Any]) -> Iterator[str]:
    yield f"{path}/{ROOT}"
    if node["node_type"] != "array" or path in volumes:
        return
    chunk = node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = (range(math.ceil(n / c)) for n, c in zip(node["shape"], chunk, strict=True))
    yield from ("/".join((path, "c", *map(str, place))) for place in product(*counts))


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
