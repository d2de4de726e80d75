"""Arrays of a converted store equal those that zarr-python writes from the same settings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.dtype import VariableLengthUTF8
from zarr.storage import MemoryStore

from lundprobe_zarr.schema.encoding import FILTERS, MASK_BLOSC, inner_chunk, shard_shape
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, shard_key
from lundprobe_zarr.stores.opening import open_store

pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


def arrays_of(group: zarr.Group) -> Iterator[tuple[str, zarr.Array]]:
    """Every array of a store, by its path; text and numbers, volumes and coordinates."""
    for name, member in group.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield name, member


def same_kind(array: zarr.Array) -> tuple[Any, ...]:
    """What makes two arrays alike for the writer: their codecs, type and rank."""
    encoded = array.metadata.to_dict()
    return array.ndim, str(encoded["data_type"]), str(encoded["codecs"][0]["name"])


def rewritten(array: zarr.Array) -> zarr.Array:
    """An array that zarr-python makes of the same shape, type, chunks, shards and codecs."""
    text = isinstance(array.metadata.data_type, VariableLengthUTF8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = zarr.create_array(
            MemoryStore(),
            shape=array.shape,
            dtype=array.metadata.data_type if text else array.dtype,
            chunks=array.chunks,
            shards=array.shards,
            compressors=array.compressors,
            filters=array.filters or None,
            fill_value=array.fill_value,
            dimension_names=array.metadata.dimension_names,
            attributes=dict(array.attrs),
            config={"write_empty_chunks": array.shards is None},
        )
    copy[...] = array[...]
    return copy


@pytest.fixture(scope="module")
def stores(dataset: Path) -> list[Path]:
    return sorted((dataset / "patients").iterdir())


def test_each_kind_of_array_has_the_metadata_zarr_writes(stores: list[Path]) -> None:
    kinds: dict[tuple[Any, ...], str] = {}
    for store in stores:
        for name, array in arrays_of(zarr.open_group(str(store), mode="r")):
            if kinds.setdefault(same_kind(array), name) == name:
                ours, theirs = array.metadata.to_dict(), rewritten(array).metadata.to_dict()
                assert ours == theirs, f"{store.name}/{name}"
    assert {ndim for ndim, _, _ in kinds} >= {1, 2, 3, 4, 5}
    assert {"sharding_indexed"} < {codec for _, _, codec in kinds}


def volumes(stores: list[Path]) -> Iterator[tuple[Path, StoreMetadata, Any, Any, str]]:
    """The first volume of every array of volumes, of a base and of an extended patient."""
    for store in (stores[0], stores[-1]):
        metadata = open_store(Location(str(store.parents[1])), store.stem)
        seen = set()
        for array, record, key in metadata.shards():
            if array.spec.path not in seen:
                seen.add(array.spec.path)
                yield store, metadata, array, record, key


def test_each_volume_reads_alike_in_both_directions(stores: list[Path]) -> None:
    read = 0
    for store, metadata, array, record, key in volumes(stores):
        index = metadata.index(array, record)
        ours = zarr.open_array(str(store / array.spec.path), mode="r")
        values = np.asarray(ours[index])
        shard = shard_of(rewritten(ours), array, index)
        decoded = np.zeros(array.volume_shape, array.dtype)
        for box, chunk in array.codec.decode(_reader(shard), len(shard)):
            if chunk is not None:
                decoded[box] = chunk
        assert decoded.tobytes() == values.tobytes(), f"{store.name}/{key}"
        read += 1
    assert read >= 10


def shard_of(array: zarr.Array, volume: Any, index: tuple[int, ...]) -> bytes:
    """Bytes of the shard that zarr-python wrote for one volume."""
    key = shard_key(volume.spec, index).removeprefix(f"{volume.spec.path}/")
    prototype = zarr.core.buffer.default_buffer_prototype()
    buffer = zarr.core.sync.sync(array.store.get(key, prototype))
    assert buffer is not None
    return buffer.to_bytes()


def _reader(shard: bytes) -> Any:
    return lambda start, length: shard[start : start + length]


def test_chunks_shards_and_codecs_are_those_of_the_schema(stores: list[Path]) -> None:
    allowed = {b.shuffle for b in (*FILTERS, MASK_BLOSC)}
    for store, _, array, _, _ in volumes(stores):
        stored = zarr.open_array(str(store / array.spec.path), mode="r")
        labels = (1,) * len(array.spec.label_dims)
        assert stored.chunks == labels + inner_chunk(array.volume_shape)
        assert stored.shards == labels + shard_shape(array.volume_shape)
        blosc, crc = stored.compressors
        # An enumeration before zarr 3.3, then its text.
        assert getattr(blosc.shuffle, "value", blosc.shuffle) in allowed
        assert type(crc).__name__ == "Crc32cCodec"
