"""One store's consolidated metadata, read in a single request and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from lundprobe_zarr.errors import DamagedStoreError, SchemaVersionError
from lundprobe_zarr.geometry.coarser import coarser_shape
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.schema.attributes import structured_nodes
from lundprobe_zarr.schema.document import CHECKSUM, fails_checksum, parse_json, reasons, sha256_of
from lundprobe_zarr.schema.encoding import BloscSettings, inner_chunk
from lundprobe_zarr.schema.layout import ARRAY_SPECS, SCHEMA_VERSION, ArraySpec
from lundprobe_zarr.schema.levels import Levels, levels_of
from lundprobe_zarr.schema.nodes import require_sound
from lundprobe_zarr.schema.ome import level_path, ome_arrays
from lundprobe_zarr.schema.records import SOURCES, SourceRecord
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.vocabulary.version import UPGRADE

#: Array of the fiducials' positions, which fills no shard of volumes.
FIDUCIAL_PATH = "mri/clinical/fiducial_position"
#: What messages say of a store in another's place.
HOLDS_ANOTHER = "the store of patient"


@dataclass(frozen=True)
class VolumeArray:
    """An array of volumes: spec, shape (labels…, z, y, x), stored type, chunking, sources."""

    spec: ArraySpec
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, int, int]
    blosc: BloscSettings
    sources: tuple[SourceRecord, ...]

    @cached_property
    def dtype_name(self) -> str:
        """NumPy name of the stored type, which takes NumPy long to find."""
        return self.dtype.name

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of one volume."""
        z, y, x = self.shape[-3:]
        return z, y, x

    @property
    def codec(self) -> ShardCodec:
        """Decoder of the array's shards."""
        return ShardCodec(self.volume_shape, self.chunk, self.dtype, self.blosc)

    def shard_key(self, index: tuple[int, ...]) -> str:
        """Object of the volume at `index` (label dimensions), relative to the store."""
        return shard_key(self.spec, index)

    def level_codec(self, level: int) -> ShardCodec:
        """Decoder of the shards of a coarser level of the array."""
        shape = coarser_shape(self.volume_shape, level)
        return replace(self.codec, shape=shape, chunk=inner_chunk(shape))


@dataclass(frozen=True)
class LevelShard:
    """The shard of a coarser level of one volume: its key, size and SHA-256; 0 if there is none."""

    array: VolumeArray
    record: SourceRecord
    level: int
    key: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class StoreMetadata:
    """A store by its metadata alone: root attributes, groups' attributes, arrays of volumes.

    `sha256` is that of the text of its root `zarr.json`. `levelled` are the paths of the arrays
    that have coarser `levels`.
    """

    where: StorePlace
    attributes: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    arrays: dict[str, VolumeArray]
    fiducial_record: SourceRecord | None = None
    n_fiducials: int = 0
    sha256: str = ""
    levels: Levels | None = None
    levelled: frozenset[str] = field(default_factory=frozenset)

    @property
    def records(self) -> list[tuple[VolumeArray | None, SourceRecord]]:
        """Every source file with the array of volumes it is in; None for the fiducial text."""
        volumes = [(a, r) for a in self.arrays.values() for r in a.sources]
        return [*volumes, *([(None, self.fiducial_record)] if self.fiducial_record else [])]

    @property
    def patient_id(self) -> str:
        """The patient the store is of."""
        return str(self.attributes["patient_id"])

    def grid(self, name: str) -> Grid | None:
        """The voxel lattice `mri`, `sct` or `dose`; None if the patient has none."""
        if name not in self.groups:
            return None
        z, y, x = self.groups[name]["shape"]
        return Grid(np.asarray(self.groups[name]["affine"], dtype=np.float64), (z, y, x))

    def labels(self, group: str) -> dict[str, list[Any]]:
        """Labels of a group: dimension -> labels, as repeated in its attributes."""
        return dict(self.groups[group].get("labels", {}))

    def index(self, array: VolumeArray, record: SourceRecord) -> tuple[int, ...]:
        """Position of a source file's slice in its array."""
        labels = self.labels(array.spec.group)
        return tuple(labels[d].index(record.labels[d]) for d in array.spec.label_dims)

    def shards(self) -> Iterator[tuple[VolumeArray, SourceRecord, str]]:
        """Every shard: its array, the source file that fills it, and its object's key."""
        for array in self.arrays.values():
            for record in array.sources:
                yield array, record, array.shard_key(self.index(array, record))

    @property
    def level_count(self) -> int:
        """Number of coarser levels; 0 without any."""
        return 0 if self.levels is None else self.levels.count

    def level_shards(self) -> Iterator[LevelShard]:
        """Every shard of the coarser levels, those of all-zero volumes too."""
        if self.levels is None:
            return
        for array, record, _ in self.shards():
            if array.spec.path in self.levelled:
                index = self.index(array, record)
                for level in range(1, self.levels.count + 1):
                    path = f"{array.spec.group}/{level_path(array.spec.variable, level)}"
                    key = chunk_key(path, index)
                    size, sha256 = self.levels.shards.get(key, (0, None))
                    yield LevelShard(array, record, level, key, size, sha256)


def shard_key(spec: ArraySpec, index: tuple[int, ...]) -> str:
    """Object, relative to the store, of the volume at `index`: the shard's chunk key."""
    return chunk_key(spec.path, index)


def chunk_key(path: str, index: tuple[int, ...]) -> str:
    """Object of the volume at `index` of the array at `path`, both relative to the store."""
    return "/".join((path, "c", *(str(i) for i in index), "0", "0", "0"))


def parse_store(text: str | bytes, where: StorePlace) -> StoreMetadata:
    """Metadata of the text of a store's root `zarr.json`, found at `where`.

    Raises `SchemaVersionError` for a newer schema, `DamagedStoreError` for anything that is not
    the metadata of a complete store.
    """
    try:
        raw = parse_json(text)
        _require_readable(raw["attributes"]["schema_version"], where)
        known = structured_nodes(raw)
        require_sound(known)
        attributes, nodes = known["attributes"], known["consolidated_metadata"]["metadata"]
        groups = {p: n["attributes"] for p, n in nodes.items() if n["node_type"] == "group"}
        arrays = {p: _array(p, nodes[p]) for p in ARRAY_SPECS if p in nodes}
        fiducials = _fiducials(nodes)
        if fails_checksum(raw, raw["attributes"]):
            raise ValueError(f"it fails its own checksum, {CHECKSUM}")
        store = StoreMetadata(where, attributes, groups, arrays, *fiducials)
        levels = levels_of(attributes)
        if levels is not None:
            specs = (s.path for path in groups for s in ome_arrays(path, nodes))
            store = replace(store, levels=levels, levelled=frozenset(specs))
        _require_shards(store)
    except UNSOUND as error:
        raise unsound(where, error) from error
    sha256 = sha256_of(text.encode() if isinstance(text, str) else text)
    return replace(store, sha256=sha256)


#: What reading metadata that is not of this schema may raise.
UNSOUND = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


def unsound(where: StorePlace, error: Exception) -> DamagedStoreError:
    """The error that says of the store at `where` what is wrong with its metadata."""
    detail = reasons(error) if isinstance(error, ValidationError) else str(error)
    return where.damaged(f"not the metadata of a complete store ({type(error).__name__}: {detail})")


def _require_shards(store: StoreMetadata) -> None:
    """Require that each shard has a place, one alone, and room for its own index."""
    keys = set()
    index_bytes = {path: array.codec.index_bytes for path, array in store.arrays.items()}
    for array, record, key in store.shards():
        if key in keys or set(record.labels) != set(array.spec.label_dims):
            raise ValueError(f"{array.spec.path}: two source files for one place")
        if record.stored_bytes and record.stored_bytes < index_bytes[array.spec.path]:
            raise ValueError(f"{key}: {record.stored_bytes} bytes, too few for a shard's index")
        keys.add(key)


def parse_store_of(text: str | bytes, where: StorePlace) -> StoreMetadata:
    """Parse as `parse_store` does a store that has to be the patient's whose place it is in.

    Raises `DamagedStoreError` for another's, moved or copied to this place by mistake.
    """
    store = parse_store(text, where)
    if store.patient_id != where.patient:
        raise where.damaged(
            f"{HOLDS_ANOTHER} {store.patient_id}",
            f"that of {where.patient}, as its place says, or none if there is no such patient",
        )
    return store


def _require_readable(version: int, where: StorePlace) -> None:
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"schema version {version}",
            where=where,
            remedy=(f"this version of lundprobe-zarr reads up to {SCHEMA_VERSION}; {UPGRADE}"),
        )


def _array(path: str, node: dict[str, Any]) -> VolumeArray:
    sharding = node["codecs"][0]["configuration"]
    if [c["name"] for c in node["codecs"]] != ["sharding_indexed"]:
        raise ValueError(f"{path}: not sharded")
    blosc = next(c for c in sharding["codecs"] if c["name"] == "blosc")["configuration"]
    z, y, x = sharding["chunk_shape"][-3:]
    return VolumeArray(
        spec=ARRAY_SPECS[path],
        shape=tuple(node["shape"]),
        dtype=np.dtype(node["data_type"]),
        chunk=(z, y, x),
        blosc=BloscSettings(blosc["cname"], blosc["clevel"], blosc["shuffle"]),
        sources=tuple(SourceRecord.model_validate(s) for s in node["attributes"][SOURCES]),
    )


def _fiducials(nodes: dict[str, Any]) -> tuple[SourceRecord | None, int]:
    node = nodes.get(FIDUCIAL_PATH)
    if node is None:
        return None, 0
    return SourceRecord.model_validate(node["attributes"][SOURCES][0]), int(node["shape"][0])
