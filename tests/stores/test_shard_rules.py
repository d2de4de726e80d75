"""Shards, byte by byte: where chunks, index and checksums stand, and what is refused."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.encoding import FILTER_GAIN, FILTER_SAMPLE, FILTERS, BloscSettings
from lundprobe_zarr.stores import shard
from lundprobe_zarr.stores.shard import EMPTY, ShardCodec, overlap, with_best_filter

I2 = np.dtype("i2")


def codec(
    shape: tuple[int, int, int] = (4, 5, 6),
    chunk: tuple[int, int, int] = (2, 3, 4),
    dtype: Any = I2,
) -> ShardCodec:
    return ShardCodec(shape, chunk, np.dtype(dtype), BloscSettings())


def crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def whole(one: ShardCodec, volume: np.ndarray, within: Any = None) -> bytes:
    return b"".join(one.encode(volume, within))


# Geometry


def test_a_codec_counts_chunks_and_bytes() -> None:
    one = codec()
    assert one.grid == (2, 2, 2)
    assert codec((1, 7, 9), (1, 7, 3)).grid == (1, 1, 3)
    assert codec((5, 6, 7), (2, 3, 7)).grid == (3, 2, 1)
    assert one.chunk_bytes == 2 * 3 * 4 * 2
    assert one.index_bytes == 8 * 16 + 4


def test_boxes_are_in_c_order_and_clipped() -> None:
    assert codec((3, 4, 2), (2, 3, 2)).boxes() == (
        (slice(0, 2), slice(0, 3), slice(0, 2)),
        (slice(0, 2), slice(3, 4), slice(0, 2)),
        (slice(2, 3), slice(0, 3), slice(0, 2)),
        (slice(2, 3), slice(3, 4), slice(0, 2)),
    )
    assert codec().boxes() is codec().boxes(), "computed once"


BOXES = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 4))] * 3).map(
    lambda sides: tuple(slice(a, a + n) for a, n in sides)
)


@given(BOXES, BOXES)
def test_boxes_overlap_if_they_have_a_voxel_in_common(a: Any, b: Any) -> None:
    common = all(
        set(range(s.start, s.stop)) & set(range(t.start, t.stop)) for s, t in zip(a, b, strict=True)
    )
    assert overlap(a, b) is common
    assert overlap(b, a) is common
    assert overlap(a, None)


@pytest.mark.parametrize("axis", range(3))
def test_boxes_that_touch_do_not_overlap(axis: int) -> None:
    one = (slice(2, 4),) * 3
    for start, stop, common in ((0, 2, False), (0, 3, True), (3, 9, True), (4, 9, False)):
        other = tuple(slice(start, stop) if a == axis else slice(0, 9) for a in range(3))
        assert overlap(one, other) is common
        assert overlap(other, one) is common


# Encoding


def test_a_shard_is_chunks_then_index_then_checksum() -> None:
    one = codec()
    volume = np.zeros(one.shape, I2)
    volume[0, 0, 0], volume[3, 4, 5] = 7, -7
    parts = list(one.encode(volume))
    assert len(parts) == 3, "two chunks that are not empty, and the index"
    first, last, tail = parts
    for part in (first, last):
        assert part[-4:] == crc(part[:-4])
    assert len(tail) == one.index_bytes
    assert tail[-4:] == crc(tail[:-4])
    index = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
    assert index[0].tolist() == [0, len(first)]
    assert index[7].tolist() == [len(first), len(last)]
    assert (index[1:7] == EMPTY).all()
    assert EMPTY == 2**64 - 1


def test_a_chunk_at_the_edge_is_filled_up_with_zeros() -> None:
    one = codec((1, 1, 1), (2, 3, 4))
    data = whole(one, np.full((1, 1, 1), 9, I2))
    index = one.decode_index(data[-one.index_bytes :], len(data))
    offset, length = (int(n) for n in index[0])
    chunk = one.decode_chunk(data[offset : offset + length])
    expected = np.zeros((2, 3, 4), I2)
    expected[0, 0, 0] = 9
    np.testing.assert_array_equal(chunk, expected)


def test_values_are_cast_whatever_their_order_in_memory() -> None:
    one = codec((2, 3, 4), (2, 3, 4))
    volume = np.arange(24, dtype="i8").reshape(4, 3, 2).transpose(2, 1, 0)
    [(_, chunk)] = one.decode(
        lambda at, n: whole(one, volume)[at : at + n], len(whole(one, volume))
    )
    assert chunk is not None
    assert chunk.dtype == I2
    np.testing.assert_array_equal(chunk, volume)


def test_minus_zero_is_a_value() -> None:
    one = codec((1, 1, 2), (1, 1, 2), "f4")
    assert whole(one, np.zeros((1, 1, 2), "f4")) == b""
    assert whole(one, np.full((1, 1, 2), -0.0, "f4"))


def test_only_chunks_that_reach_into_the_box_are_looked_at() -> None:
    one = codec((4, 4, 4), (2, 2, 2))
    volume = np.ones((4, 4, 4), I2)
    within = (slice(2, 4), slice(0, 1), slice(0, 4))
    data = whole(one, volume, within)
    index = one.decode_index(data[-one.index_bytes :], len(data))
    assert (index[:, 0] != EMPTY).tolist() == [False] * 4 + [True, True, False, False]
    assert whole(one, volume, None) == whole(one, volume)


def test_the_settings_reach_blosc() -> None:
    volume = np.random.default_rng(0).integers(0, 50, (8, 16, 16)).astype("i4")
    flags = {}
    for shuffle in ("noshuffle", "shuffle", "bitshuffle"):
        one = ShardCodec((8, 16, 16), (8, 16, 16), np.dtype("i4"), BloscSettings(shuffle=shuffle))
        data = whole(one, volume)
        flags[shuffle] = data[2]  # of Blosc's header: version, version of the codec, flags, type
        assert data[3] == 4
        assert int.from_bytes(data[8:12], "little") == one.chunk_bytes
    assert [flags[s] & 0b101 for s in flags] == [0, 1, 4]


# Decoding


def shard_of(one: ShardCodec) -> bytes:
    return whole(one, np.arange(1, 121, dtype=I2).reshape(4, 5, 6))


def index_of(one: ShardCodec, rows: dict[int, tuple[int, int]]) -> bytes:
    """An index with a right checksum, of chunks that are elsewhere."""
    index = np.full((int(np.prod(one.grid)), 2), EMPTY, "<u8")
    for row, value in rows.items():
        index[row] = value
    table = index.tobytes()
    return table + crc(table)


@pytest.mark.parametrize(("offset", "length"), [(0, 100), (60, 40), (100, 0), (0, 0), (99, 1)])
def test_a_chunk_may_end_where_the_index_begins(offset: int, length: int) -> None:
    one = codec()
    tail = index_of(one, {3: (offset, length)})
    index = one.decode_index(tail, 100 + len(tail))
    assert index[3].tolist() == [offset, length]
    assert index.dtype == np.uint64


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 101), (60, 41), (100, 1), (101, 0), (2**63, 2**63), (10, 2**64 - 1), (2**64 - 2, 0)],
)
def test_a_chunk_beyond_the_index_is_damage(offset: int, length: int) -> None:
    one = codec()
    for row in (0, 7):
        tail = index_of(one, {row: (offset, length), 3: (0, 5)})
        with pytest.raises(DamagedStoreError, match=f"outside its {100 + len(tail)} bytes"):
            one.decode_index(tail, 100 + len(tail))


def test_an_index_of_another_length_is_damage() -> None:
    one = codec()
    tail = index_of(one, {})
    for wrong in (tail[1:], tail + b"\0", b""):
        with pytest.raises(DamagedStoreError, match=f"{len(wrong)} bytes of shard index"):
            one.decode_index(wrong, 1000)


def test_a_chunk_without_its_checksum_is_damage() -> None:
    one = codec()
    for data in (b"", b"\0\0\0\0", crc(b""), shard_of(one)[:3]):
        with pytest.raises(DamagedStoreError, match="fails its checksum"):
            one.decode_chunk(data)


def blosc(payload: bytes) -> bytes:
    return payload + crc(payload)


def test_a_chunk_of_another_size_is_damage() -> None:
    """Its checksum is right: it is a chunk of another array, or none."""
    one, smaller = codec(), codec((4, 5, 6), (1, 3, 4))
    data = next(iter(smaller.encode(np.ones((4, 5, 6), I2))))
    with pytest.raises(DamagedStoreError, match="24 bytes by its Blosc header"):
        one.decode_chunk(data)
    for length in (1, 4, 8, 15):
        header = (b"\2\1\0\2" + one.chunk_bytes.to_bytes(4, "little") + bytes(16))[:length]
        with pytest.raises(DamagedStoreError, match="Blosc header"):
            one.decode_chunk(blosc(header))


def test_a_chunk_that_blosc_cannot_decompress_is_damage() -> None:
    one = codec()
    good = next(iter(one.encode(np.ones((4, 5, 6), I2))))[:-4]
    broken = b"\x63" + good[1:]
    with pytest.raises(DamagedStoreError, match="cannot be decompressed"):
        one.decode_chunk(blosc(broken))
    header = b"\x63\1\0\2" + one.chunk_bytes.to_bytes(4, "little") + bytes(8)
    with pytest.raises(DamagedStoreError, match="cannot be decompressed"):
        one.decode_chunk(blosc(header))  # sixteen bytes are a whole header


def test_a_mask_holds_zeros_and_ones() -> None:
    mask, numbers = codec(dtype=bool), codec(dtype="u1")
    for most, is_mask in ((1, True), (2, False)):
        data = next(iter(numbers.encode(np.full((4, 5, 6), most, "u1"))))
        assert numbers.decode_chunk(data).max() == most
        if is_mask:
            assert mask.decode_chunk(data).all()
            continue
        with pytest.raises(DamagedStoreError, match="more than 0 and 1"):
            mask.decode_chunk(data)


def test_a_chunk_is_decoded_into_the_array_given() -> None:
    one = codec()
    data = next(iter(one.encode(np.full((4, 5, 6), 5, I2))))
    out = np.zeros(one.chunk, I2)
    assert one.decode_chunk(memoryview(data), out) is out
    assert (out == 5).all()


def test_a_whole_shard_is_read_index_first_and_chunk_by_chunk() -> None:
    one = codec()
    data, asked = shard_of(one), []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return data[offset : offset + length]

    volume = np.zeros(one.shape, I2)
    for box, chunk in one.decode(read, len(data)):
        assert chunk is not None
        volume[box] = chunk
    np.testing.assert_array_equal(volume, np.arange(1, 121).reshape(4, 5, 6))
    assert asked[0] == (len(data) - one.index_bytes, one.index_bytes)
    assert [offset for offset, _ in asked[1:]] == sorted(offset for offset, _ in asked[1:])
    assert sum(length for _, length in asked) == len(data)


def test_a_shard_smaller_than_its_index_is_asked_for_what_there_is() -> None:
    one, asked = codec(), []

    def read(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return bytes(length)

    with pytest.raises(DamagedStoreError, match="10 bytes of shard index"):
        list(one.decode(read, 10))
    assert asked == [(0, 10)]


def test_a_shard_that_was_not_written_is_empty_everywhere() -> None:
    one = codec()
    assert list(one.decode(lambda *_: pytest.fail("nothing to read"), 0)) == [
        (box, None) for box in one.boxes()
    ]


# The choice of a filter


def test_a_sample_is_spread_evenly_over_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    one = codec((100, 1, 1), (1, 1, 1))
    volume = np.arange(100, dtype=I2).reshape(100, 1, 1)
    original = ShardCodec._padded

    def padded(self: ShardCodec, values: np.ndarray) -> np.ndarray:
        taken.append(int(values.ravel()[0]))
        return original(self, values)

    monkeypatch.setattr(ShardCodec, "_padded", padded)
    sample = one.sample(volume)
    assert FILTER_SAMPLE == 12
    assert taken == list(range(4, 100, 8)), "every eighth, from the middle of the first eight on"
    assert list(sample) == taken, "by their numbers"
    assert sample[4] == one._compressor.encode(np.full((1, 1, 1), 4, I2))
    taken.clear()
    codec((10, 1, 1), (1, 1, 1)).sample(volume[:10])
    assert taken == list(range(10)), "all of fewer"


def sizes(monkeypatch: pytest.MonkeyPatch, by_filter: list[list[float]]) -> None:
    """Pretend what each filter makes of each of the volumes, which are numbers here."""
    monkeypatch.setattr(
        ShardCodec,
        "sample",
        lambda self, volume: {0: bytes(int(by_filter[FILTERS.index(self.blosc)][volume]))},
    )


@pytest.mark.parametrize(
    ("by_filter", "best"),
    [
        ([[100], [90], [80]], 2),
        ([[100], [80], [90]], 1),
        ([[100], [98], [98]], 0),  # not worth a change
        ([[100], [100 * FILTER_GAIN], [100 * FILTER_GAIN]], 0),
        ([[100], [96], [95]], 1),  # of the second the third gains too little
        ([[0], [1], [1]], 0),
        ([[60, 60], [10, 100], [100, 5]], 2),  # in all
    ],
)
def test_the_best_filter_gains_three_percent(
    monkeypatch: pytest.MonkeyPatch, by_filter: list[list[float]], best: int
) -> None:
    assert len(FILTERS) == 3
    sizes(monkeypatch, by_filter)
    volumes: Any = range(len(by_filter[0]))
    for start in FILTERS:
        given_ = ShardCodec((1, 1, 1), (1, 1, 1), I2, start)
        found, samples = with_best_filter(given_, volumes)
        assert [len(s[0]) for s in samples] == by_filter[best], "of the filter that was chosen"
        assert found.blosc == FILTERS[best]
        assert (found.shape, found.chunk, found.dtype) == (given_.shape, given_.chunk, I2)


def test_what_was_compressed_for_the_choice_is_not_compressed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = np.random.default_rng(0).integers(-900, 900, (30, 8, 8)).astype(I2)
    volume[4:8] = 0  # whole chunks, which were tried too, and are left out nevertheless
    plain = ShardCodec(volume.shape, (1, 4, 4), np.dtype(I2), FILTERS[0])
    best, (sample,) = with_best_filter(plain, [volume])
    whole = b"".join(best.encode(volume))
    compress = best._compressor.encode
    compressed: list[bytes] = []

    class Counting:
        def encode(self, chunk: np.ndarray) -> bytes:
            compressed.append(chunk.tobytes())
            return bytes(compress(chunk))

    monkeypatch.setitem(vars(best), "_compressor", Counting())
    assert b"".join(best.encode(volume, None, sample)) == whole
    stored = [n for n, box in enumerate(best.boxes()) if volume[box].any()]
    expected = [volume[best.boxes()[n]].tobytes() for n in stored if n not in sample]
    assert compressed == expected
    assert 0 < len(compressed) < len(stored)


def test_a_codec_is_a_value() -> None:
    with pytest.raises(AttributeError):
        codec().shape = (1, 1, 1)  # type: ignore[misc]
    assert codec() == codec()
    assert hash(codec()) == hash(codec())
    assert codec()._compressor is not codec()._compressor
    one = codec()
    assert one._compressor is one._compressor, "made once"
    assert shard._boxes.cache_info().maxsize
