"""Decoded inner chunks of many stores, kept up to a number of bytes and shared by threads.

For those who look at planes: neighbouring planes, and planes of all three axes, share chunks. A
chunk that several threads ask for is decoded by the first; the others wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.stores.metadata import VolumeArray
from lundprobe_zarr.stores.reader import Part, StoreReader
from lundprobe_zarr.stores.shard import Box

Voxels = npt.NDArray[Any]
#: SHA-256 of the store's metadata, path of the array, places of its labels, place of the chunk.
_Key = tuple[str, str, tuple[int, ...], tuple[int, ...]]
#: Bytes that a chunk takes in addition to its voxels.
_OVERHEAD = 400


class Tiles:
    """A cache of decoded inner chunks, least recently used first out.

    Chunks are kept in the narrowest type that holds their values, and one of equal voxels as one
    value: air and most of any mask take next to nothing.

    Parameters
    ----------
    max_bytes : int
        Most bytes of voxels that are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, Voxels] = OrderedDict()
        self._coming: dict[_Key, Future[Voxels]] = {}
        self.bytes = 0

    def read(
        self, reader: StoreReader, array: VolumeArray, index: tuple[int, ...], box: Box
    ) -> Voxels:
        """Read a box (z, y, x) within a volume: its values in the narrowest type of its chunks.

        Booleans stay booleans; whole numbers that int16 holds are int16; other values are float32
        or, if that does not hold them, float64. All values are numerically those stored. Raises
        `DamagedStoreError` as `StoreReader.read_parts` does.
        """
        found = self._chunks(reader, array, index, _touched(array, box))
        kind = np.result_type(*(c.dtype for c in found.values())) if found else array.dtype
        out = np.empty([s.stop - s.start for s in box], kind)
        for place, chunk in found.items():
            to, of = _shared(place, array.chunk, box)
            out[to] = chunk[of]
        return out

    def missing_bytes(
        self, reader: StoreReader, array: VolumeArray, index: tuple[int, ...], box: Box
    ) -> int:
        """Return how many bytes have to be decoded for a box, before they are narrowed."""
        sha = reader.metadata.sha256
        with self._lock:
            places = _touched(array, box)
            count = sum((sha, array.spec.path, index, p) not in self._kept for p in places)
        return count * array.codec.chunk_bytes

    def _chunks(
        self,
        reader: StoreReader,
        array: VolumeArray,
        index: tuple[int, ...],
        places: Iterable[tuple[int, ...]],
    ) -> dict[tuple[int, ...], Voxels]:
        base = (reader.metadata.sha256, array.spec.path, index)
        wanted: list[_Key] = [(*base, place) for place in places]
        found: dict[_Key, Voxels] = {}
        while len(found) < len(wanted):
            mine: dict[_Key, Future[Voxels]] = {}
            others: dict[_Key, Future[Voxels]] = {}
            with self._lock:
                for key in wanted:
                    if key in found:
                        continue
                    if key in self._kept:
                        self._kept.move_to_end(key)
                        found[key] = self._kept[key]
                    elif key in self._coming:
                        others[key] = self._coming[key]
                    else:
                        mine[key] = self._coming[key] = Future()
            if mine:
                found |= self._decode(reader, array, mine)
            for key, future in others.items():
                try:
                    found[key] = future.result()
                except (LundProbeError, OSError, CancelledError):
                    continue  # what failed may be another chunk of theirs: this thread tries itself
        return {key[3]: found[key] for key in wanted}

    def _decode(
        self, reader: StoreReader, array: VolumeArray, mine: dict[_Key, Future[Voxels]]
    ) -> dict[_Key, Voxels]:
        """Decode chunks, in one read of the box around them, for all threads that wait."""
        done: dict[_Key, Voxels] = {}
        try:
            places = np.array([key[3] for key in mine])
            first = places.min(axis=0) * array.chunk
            last = np.minimum((places.max(axis=0) + 1) * array.chunk, array.volume_shape)
            z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
            path, index = array.spec.path, next(iter(mine))[2]
            (voxels,) = reader.read_parts([Part(path, index, (z, y, x))])
            for key in mine:
                _, of = _shared(key[3], array.chunk, (z, y, x), whole=True)
                done[key] = _narrowed(voxels[of])
        finally:
            self._settle(mine, done)
        return done

    def _settle(self, mine: dict[_Key, Future[Voxels]], done: dict[_Key, Voxels]) -> None:
        """Keep what was decoded, and tell who waits; the rest is decoded anew by who asks."""
        is_whole = len(done) == len(mine)
        with self._lock:
            for key in mine:
                del self._coming[key]
                if is_whole:
                    self._kept[key] = done[key]
                    self.bytes += _size(done[key])
            while self.bytes > self.max_bytes and self._kept:
                self.bytes -= _size(self._kept.popitem(last=False)[1])
        for key, future in mine.items():
            if is_whole:
                future.set_result(done[key])
            else:
                future.cancel()


def _touched(array: VolumeArray, box: Box) -> list[tuple[int, ...]]:
    """Places of the inner chunks that a box has voxels of."""
    if any(s.stop <= s.start for s in box):
        return []
    spans = (range(s.start // c, -(-s.stop // c)) for s, c in zip(box, array.chunk, strict=True))
    return list(product(*spans))


def _shared(
    place: Sequence[int], chunk: Sequence[int], box: Box, whole: bool = False
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the voxels that a chunk shares with a box go in the box, and where they are.

    They are in the chunk or, with `whole`, in the voxels of the box.
    """
    to, of = [], []
    for p, c, s in zip(place, chunk, box, strict=True):
        start, stop = max(p * c, s.start), min((p + 1) * c, s.stop)
        to.append(slice(start - s.start, stop - s.start))
        of.append(slice(start - p * c, stop - p * c))
    return tuple(to), tuple(to if whole else of)


def _narrowed(values: Voxels) -> Voxels:
    """Return values in the narrowest type; equal ones as one value, seen in the same shape."""
    first = values.flat[0]
    if values.dtype != np.bool_:
        values = as_narrowest(values)
    if (values == first).all():
        return np.broadcast_to(values.flat[0].copy(), values.shape)
    return values if values.base is None else values.copy()  # a view would hold all that was read


def as_narrowest(values: Voxels) -> Voxels:
    """Return numbers as int16, else as float32, where that holds each of them; else as they are."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int16)
        if (whole == values).all():
            return whole
    if values.dtype == np.float64:
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        if np.array_equal(single, values, equal_nan=True):
            return single
    return values


def _size(voxels: Voxels) -> int:
    one_value = not any(voxels.strides)
    return _OVERHEAD + (voxels.itemsize if one_value else voxels.nbytes)
