"""One shard, encoded and decoded without zarr-python's per-chunk cost.

A shard holds one whole volume (z, y, x) as Zarr v3's `sharding_indexed` codec lays it out: inner
chunks, each Blosc and then a crc32c; an index of (offset, length) per chunk and its crc32c at the
end. Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html.
Tests read what is written here with zarr-python, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc
from numcodecs.blosc import decompress

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.document import CRC_BYTES, crc32c
from lundprobe_zarr.schema.encoding import FILTER_GAIN, FILTER_SAMPLE, FILTERS, BloscSettings

Volume = npt.NDArray[Any]
Box = tuple[slice, slice, slice]
#: Compressed chunks of a volume, without checksum, by their number in the index.
Compressed = Mapping[int, bytes]
#: Fetches `length` bytes of a shard from `offset`.
ReadRange = Callable[[int, int], bytes]

#: Offset and length of a chunk that is not written because it is all fill value.
EMPTY = np.iinfo(np.uint64).max
#: Blosc's header, and where in it the size of what was compressed stands, little-endian. Source:
#: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
_BLOSC_HEADER = 16
_BLOSC_SIZE = slice(4, 8)
_SHUFFLES = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


@dataclass(frozen=True)
class ShardCodec:
    """Encoder and decoder of shards of one array.

    `shape` is the volume's (z, y, x), `chunk` the inner chunk's, `dtype` the stored type.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    dtype: np.dtype[Any]
    blosc: BloscSettings

    @cached_property
    def _compressor(self) -> Any:
        b, shuffle = self.blosc, _SHUFFLES[self.blosc.shuffle]
        return Blosc(cname=b.cname, clevel=b.clevel, shuffle=shuffle, blocksize=self.chunk_bytes)

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk; also Blosc's block: 3 % smaller and faster than its choice."""
        return int(np.prod(self.chunk)) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of inner chunks along z, y, x."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        return z, y, x

    @property
    def index_bytes(self) -> int:
        """Size of the index at the shard's end, its checksum included."""
        return 16 * int(np.prod(self.grid)) + CRC_BYTES

    def boxes(self) -> Sequence[Box]:
        """Voxels of each inner chunk, clipped to the volume, in the index's order."""
        return _boxes(self.shape, self.chunk)

    def encode(
        self, volume: Volume, within: Box | None = None, compressed: Compressed | None = None
    ) -> Iterator[bytes]:
        """Parts of the shard of `volume` (z, y, x), in order; none if every voxel is zero.

        Values are cast to `dtype`, which must hold them. All-zero chunks are left out; outside of
        the box `within`, if given, every voxel is known to be zero and is not looked at. Chunks
        in `compressed`, which `sample` of this codec and volume returned, are not compressed again.
        """
        compressed = compressed or {}
        index = np.full((int(np.prod(self.grid)), 2), EMPTY, dtype="<u8")
        offset = 0
        for number, box in enumerate(self.boxes()):
            if not overlap(box, within):
                continue
            chunk = self._padded(volume[box])
            # Bytes, not values: -0.0 equals the fill value and is yet another number.
            if not chunk.view(np.bool_).any():
                continue
            payload = compressed.get(number) or self._compressor.encode(chunk)
            part = payload + crc32c(payload)
            index[number] = offset, len(part)
            offset += len(part)
            yield part
        if offset:
            table = index.tobytes()
            yield table + crc32c(table)

    def sample(self, volume: Volume) -> dict[int, bytes]:
        """Compress a sample of the volume's chunks, spread evenly over it; by their numbers."""
        boxes = self.boxes()
        step = max(1, len(boxes) // FILTER_SAMPLE)
        numbers = range(step // 2, len(boxes), step)
        return {n: self._compressor.encode(self._padded(volume[boxes[n]])) for n in numbers}

    def _padded(self, values: Volume) -> Volume:
        if values.shape == self.chunk:
            return np.ascontiguousarray(values, dtype=self.dtype)
        chunk = np.zeros(self.chunk, self.dtype)
        chunk[tuple(slice(n) for n in values.shape)] = values
        return chunk

    def decode_index(self, encoded: bytes, size: int) -> npt.NDArray[np.uint64]:
        """Return offsets and lengths (chunks, 2) of a shard of `size` bytes from its encoded index.

        Raises `DamagedStoreError`, which the caller completes with the place, if the index is
        short, fails its checksum or names a chunk that does not lie before it.
        """
        if len(encoded) != self.index_bytes:
            raise DamagedStoreError(
                f"{len(encoded)} bytes of shard index: the file is truncated",
                expected=str(self.index_bytes),
            )
        table = encoded[:-CRC_BYTES]
        if crc32c(table) != encoded[-CRC_BYTES:]:
            raise DamagedStoreError("the shard's index fails its checksum")
        index = np.frombuffer(table, "<u8").reshape(-1, 2).astype(np.uint64)
        there = index[index[:, 0] != EMPTY]
        end = np.uint64(size - len(encoded))
        if ((there > end) | (there[:, 1:] > end - np.minimum(there[:, :1], end))).any():
            raise DamagedStoreError(f"the shard's index names a chunk outside its {size} bytes")
        return index

    def decode_chunk(
        self, data: bytes | npt.NDArray[np.uint8], out: Volume | None = None
    ) -> Volume:
        """One inner chunk, in its full shape; `data` is its bytes with the checksum.

        `out` is an array of that shape and type to decode into. Raises `DamagedStoreError`,
        which the caller completes with the place, if the checksum fails or the bytes are no such
        chunk.
        """
        # As an array, which checksum and Blosc both take without a copy.
        whole = np.frombuffer(data, np.uint8)
        payload, checksum = whole[:-CRC_BYTES], whole[-CRC_BYTES:]
        if len(whole) <= CRC_BYTES or crc32c(payload) != checksum.tobytes():
            raise DamagedStoreError("an inner chunk fails its checksum")
        # Of fewer bytes Blosc would fill a part of the chunk, and leave the rest as it was.
        claimed = int.from_bytes(payload[_BLOSC_SIZE].tobytes(), "little")
        if len(payload) < _BLOSC_HEADER or claimed != self.chunk_bytes:
            raise DamagedStoreError(
                f"an inner chunk of {claimed} bytes by its Blosc header",
                expected=f"{self.chunk_bytes} bytes",
            )
        chunk = np.empty(self.chunk, self.dtype) if out is None else out
        try:
            decompress(payload, chunk)
        except (ValueError, RuntimeError) as error:
            raise DamagedStoreError(f"an inner chunk cannot be decompressed ({error})") from error
        if self.dtype == np.bool_ and chunk.view(np.uint8).max() > 1:
            raise DamagedStoreError("an inner chunk of a mask holds more than 0 and 1")
        return chunk

    def decode(self, read: ReadRange, size: int) -> Iterator[tuple[Box, Volume | None]]:
        """Every inner chunk of a whole shard, clipped to the volume; None where it is empty.

        `read(offset, length)` fetches bytes of the shard, `size` is its length; 0 is a shard that
        was not written. Raises `DamagedStoreError` if anything read fails its checksum.
        """
        if not size:
            yield from ((box, None) for box in self.boxes())
            return
        index = self.decode_index(self._read_index(read, size), size)
        for (offset, length), box in zip(index.tolist(), self.boxes(), strict=True):
            if offset == EMPTY:
                yield box, None
                continue
            chunk = self.decode_chunk(read(offset, length))
            yield box, chunk[tuple(slice(s.stop - s.start) for s in box)]

    def _read_index(self, read: ReadRange, size: int) -> bytes:
        length = min(self.index_bytes, size)
        return read(size - length, length)


@lru_cache(maxsize=16)  # asked for several times for each of a patient's volumes
def _boxes(shape: tuple[int, int, int], chunk: tuple[int, int, int]) -> tuple[Box, ...]:
    z, y, x = (
        [slice(start, min(start + c, n)) for start in range(0, n, c)]
        for n, c in zip(shape, chunk, strict=True)
    )
    return tuple(product(z, y, x))


def overlap(box: Box, within: Box | None) -> bool:
    """Whether two boxes have a voxel in common; any box has one with None, the whole volume."""
    if within is None:
        return True
    # Spelled out: asked for every chunk of every mask, a loop over the axes takes longer.
    (z, y, x), (k, j, i) = box, within
    return bool(
        z.start < k.stop
        and k.start < z.stop
        and y.start < j.stop
        and j.start < y.stop
        and x.start < i.stop
        and i.start < x.stop
    )


def with_best_filter(
    codec: ShardCodec, volumes: Sequence[Volume]
) -> tuple[ShardCodec, list[dict[int, bytes]]]:
    """`codec` with the filter that serves an array's volumes (z, y, x) best, found by trying.

    With it come the chunks of each volume that it was tried on, for `encode`.
    """
    best: tuple[ShardCodec, list[dict[int, bytes]]] = codec, []
    smallest = 0.0
    for number, blosc in enumerate(FILTERS):
        candidate = replace(codec, blosc=blosc)
        samples = [candidate.sample(v) for v in volumes]
        size = sum(len(chunk) for sample in samples for chunk in sample.values())
        if number == 0 or size < smallest * FILTER_GAIN:
            best, smallest = (candidate, samples), size
    return best
