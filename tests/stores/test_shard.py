"""Shards as zarr-python writes and reads them, and no flipped byte unnoticed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.encoding import (
    FILTERS,
    MASK_BLOSC,
    BloscSettings,
    chunk_length,
    inner_chunk,
    shard_shape,
)
from lundprobe_zarr.stores.shard import ShardCodec

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
DTYPES = ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
BLOSC = st.sampled_from([MASK_BLOSC, *FILTERS])


@st.composite
def shards(draw: st.DrawFn) -> tuple[ShardCodec, np.ndarray]:
    """A codec of any type, shape and chunk, and a volume with many zeros, or all of them."""
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    chunk = draw(st.tuples(*[st.integers(1, n) for n in shape]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    volume = (raw[..., 0] > 127) if dtype.kind == "b" else raw.view(dtype)[..., 0]
    volume[rng.random(shape) < draw(st.sampled_from([0, 0.5, 0.95, 1]))] = 0
    if dtype.kind == "f" and draw(st.booleans()):
        volume.reshape(-1)[rng.integers(volume.size)] = -0.0
    return ShardCodec(shape, chunk, dtype, draw(BLOSC)), volume


def zarr_array(codec: ShardCodec) -> Any:
    padded = tuple(-(-n // c) * c for n, c in zip(codec.shape, codec.chunk, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr's own, about specifications
        return zarr.create_array(
            MemoryStore(),
            shape=codec.shape,
            dtype=codec.dtype,
            chunks=codec.chunk,
            shards=padded,
            compressors=[
                BloscCodec(
                    typesize=codec.dtype.itemsize,
                    cname=codec.blosc.cname,
                    clevel=codec.blosc.clevel,
                    shuffle=codec.blosc.shuffle,
                ),
                Crc32cCodec(),
            ],
            fill_value=codec.dtype.type(0),
            config={"write_empty_chunks": False},
        )


def put(array: Any, data: bytes) -> None:
    buffer = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(data)
    zarr.core.sync.sync(array.store.set("c/0/0/0", buffer))


def get(array: Any) -> bytes:
    prototype = zarr.core.buffer.default_buffer_prototype()
    found = zarr.core.sync.sync(array.store.get("c/0/0/0", prototype))
    return b"" if found is None else bytes(found.to_bytes())


def decoded(codec: ShardCodec, data: bytes) -> np.ndarray:
    volume = np.full(codec.shape, 1, codec.dtype)
    for box, chunk in codec.decode(lambda at, n: data[at : at + n], len(data)):
        volume[box] = 0 if chunk is None else chunk
    return volume


@SETTINGS
@given(shards())
@example((ShardCodec((3, 3, 3), (2, 2, 2), np.dtype("f4"), FILTERS[0]), np.full((3, 3, 3), -0.0)))
def test_zarr_reads_what_we_write(shard: tuple[ShardCodec, np.ndarray]) -> None:
    codec, volume = shard
    array, data = zarr_array(codec), b"".join(codec.encode(volume))
    if data:
        put(array, data)
    expected = np.ascontiguousarray(volume, codec.dtype)
    assert array[...].tobytes() == expected.tobytes()
    assert decoded(codec, data).tobytes() == expected.tobytes()
    has_bits = any(expected.tobytes())
    assert bool(data) == has_bits


@SETTINGS
@given(shards())
def test_we_read_what_zarr_writes(shard: tuple[ShardCodec, np.ndarray]) -> None:
    codec, volume = shard
    array = zarr_array(codec)
    array[...] = volume
    np.testing.assert_array_equal(decoded(codec, get(array)), array[...])


@SETTINGS
@given(shards(), st.data())
def test_any_part_of_a_shard_is_read_by_its_index_alone(
    shard: tuple[ShardCodec, np.ndarray], data: st.DataObject
) -> None:
    codec, volume = shard
    stored = b"".join(codec.encode(volume))
    if not stored:
        return
    index = codec.decode_index(stored[-codec.index_bytes :], len(stored))
    boxes = list(codec.boxes())
    number = data.draw(st.integers(0, len(boxes) - 1))
    offset, length = (int(n) for n in index[number])
    box = boxes[number]
    if offset == np.iinfo(np.uint64).max:
        assert not volume[box].any()
        return
    chunk = codec.decode_chunk(stored[offset : offset + length])
    clipped = chunk[tuple(slice(s.stop - s.start) for s in box)]
    assert clipped.tobytes() == np.ascontiguousarray(volume[box]).tobytes()


@pytest.mark.parametrize("dtype", ["bool", "i2", "f4"])
def test_every_flipped_byte_of_a_shard_is_noticed(dtype: str) -> None:
    codec = ShardCodec((5, 6, 7), (3, 4, 4), np.dtype(dtype), FILTERS[0])
    volume = np.random.default_rng(0).integers(0, 2, codec.shape).astype(dtype)
    volume[:3] = 0
    good = b"".join(codec.encode(volume))
    for position in range(len(good)):
        for mask in (0x01, 0x80, 0xFF):
            bad = good[:position] + bytes([good[position] ^ mask]) + good[position + 1 :]
            with pytest.raises(DamagedStoreError):
                decoded(codec, bad)


def test_every_truncation_of_a_shard_is_noticed() -> None:
    codec = ShardCodec((5, 6, 7), (3, 4, 4), np.dtype("i2"), FILTERS[0])
    volume = np.random.default_rng(0).integers(0, 99, codec.shape).astype("i2")
    good = b"".join(codec.encode(volume))
    for length in range(1, len(good)):
        with pytest.raises(DamagedStoreError):
            decoded(codec, good[:length])


def test_a_shard_that_was_not_written_is_all_zero() -> None:
    codec = ShardCodec((5, 6, 7), (3, 4, 4), np.dtype("i2"), MASK_BLOSC)
    assert list(codec.encode(np.zeros(codec.shape, "i2"))) == []
    assert not decoded(codec, b"").any()


@settings(SETTINGS, max_examples=300)
@given(st.tuples(st.integers(1, 500), st.integers(1, 3000), st.integers(1, 3000)))
def test_chunks_are_near_their_target_and_a_shard_holds_the_volume(
    shape: tuple[int, int, int],
) -> None:
    chunk, shard = inner_chunk(shape), shard_shape(shape)
    for n, c, s, target in zip(shape, chunk, shard, (8, 128, 128), strict=True):
        assert s >= n
        assert s % c == 0
        assert s - n < c
        assert c <= 2 * target
        assert c == n or c >= target / 2
        assert chunk_length(n, target) == c


def test_a_store_on_disk_is_read_by_zarr_in_shards_of_whole_volumes(tmp_path: Path) -> None:
    codec = ShardCodec((4, 5, 6), (2, 3, 3), np.dtype("i2"), BloscSettings())
    volume = np.arange(120, dtype="i2").reshape(codec.shape)
    array = zarr_array(codec)
    put(array, b"".join(codec.encode(volume)))
    np.testing.assert_array_equal(array[1:3, 2:5, ::2], volume[1:3, 2:5, ::2])


def test_a_chunk_is_one_block_of_blosc() -> None:
    codec = ShardCodec((8, 128, 128), (8, 128, 128), np.dtype("f4"), FILTERS[0])
    volume = np.random.default_rng(0).integers(0, 900, codec.shape).astype("f4")
    data = b"".join(codec.encode(volume))
    block = int.from_bytes(data[8:12], "little")  # of Blosc's header: nbytes, blocksize, cbytes
    assert block == codec.chunk_bytes == volume.nbytes
