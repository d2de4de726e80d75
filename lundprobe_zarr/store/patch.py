"""Boxes of voxels straight out of a store's shards: the read path of patches and of lazy arrays.

Everything needed is known from the store's metadata: where each shard is, how long, how its inner
chunks are laid out. So a first patch takes two rounds of requests, all of a round at the same time:
the shards' indices, then the inner chunks. A second patch of the same patient takes one.
Every checksum is compared; a shard that should be there and is not is an error, never zeros.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import (
    DamagedStoreError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.store.dataset import open_store
from lundprobe_zarr.store.location import Location, Range
from lundprobe_zarr.store.metadata import StoreMetadata, VolumeArray, shard_key
from lundprobe_zarr.store.remedy import remedy
from lundprobe_zarr.store.shard import EMPTY, Box, ShardCodec
from lundprobe_zarr.vocabulary.files import Label

Volume = npt.NDArray[Any]

#: Inner chunks that lie this close are fetched in one request, with what is between them: that
#: much takes about a millisecond on a fast line, a request tens. Rows of a full-size patch are
#: five chunks or some 500 kB apart in an image, and next to nothing in a mask.
MERGE_GAP = 128 * 1024
#: Fetched of a shard's end at first, index included: all of most masks, so that they take one
#: request and no other ever after.
TAIL_BYTES = 64 * 1024
#: Threads that decode the chunks of one read (Blosc works outside the interpreter's lock), and
#: the number of chunks, of half a millisecond each, below which starting them is not worth it.
_DECODERS = min(4, os.cpu_count() or 1)
_FEW_CHUNKS = 6
_SCRATCH = threading.local()


@dataclass(frozen=True)
class Part:
    """A box of voxels (z, y, x) of one volume, named by array and places of its labels."""

    array: str
    index: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class _Tail:
    """A shard's index (chunks, 2) and its last bytes, from byte `start` on."""

    index: npt.NDArray[np.uint64]
    start: int
    data: bytes


@dataclass(frozen=True)
class _Chunk:
    """An inner chunk to fetch: for which part, at which place in the grid, where in the shard."""

    part: int
    place: tuple[int, int, int]
    start: int
    stop: int


class PatchReader:
    """Reads boxes of voxels of one patient's store, wherever it lives.

    Keeps the indices of the shards it has read from, a few kilobytes each. May be used by many
    threads; pickles without what it keeps.
    """

    def __init__(
        self, location: Location, metadata: StoreMetadata, decoders: int = _DECODERS
    ) -> None:
        self.location = location
        self.metadata = metadata
        #: Threads that decode one read; who reads in many threads already wants one.
        self.decoders = decoders
        self._forget()

    @classmethod
    def open(cls, location: Location, patient_id: str) -> PatchReader:
        """A reader of a patient's store; one request. Raises `DamagedStoreError`."""
        return cls(location, open_store(location, patient_id))

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._tails: dict[tuple[str, tuple[int, ...]], Future[_Tail]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in ("location", "metadata", "decoders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(
        self, volumes: Iterable[tuple[str, Mapping[str, Label]]], box: Sequence[slice]
    ) -> list[Volume]:
        """The same box (z, y, x) of several volumes, each in its array's type.

        A volume is an array's path and its labels, e.g. `("mri/image", {"modality": "T2w"})`.
        Slices are of voxels, clipped to the volume as NumPy does. Raises `UnknownLabelError` for
        an array or label there is none of, `MissingStructureError` for a structure this patient
        lacks, `DamagedStoreError` for a byte that is missing or wrong.
        """
        parts = []
        for path, labels in volumes:
            array = self.array(path)
            parts.append(Part(path, self.index(array, labels), _clipped(array, box)))
        return self.read_parts(parts)

    def array(self, path: str) -> VolumeArray:
        """The array of volumes at `path`; raises `UnknownLabelError` if this store has none."""
        if path not in self.metadata.arrays:
            raise UnknownLabelError(
                f"no array {path!r} in the store of {self.metadata.patient_id}; it has "
                f"{', '.join(self.metadata.arrays)}"
            )
        return self.metadata.arrays[path]

    def index(self, array: VolumeArray, labels: Mapping[str, Label]) -> tuple[int, ...]:
        """Position of the volume with `labels` in its array; raises as `read` does."""
        spec, there = array.spec, self.metadata.labels(array.spec.group)
        if set(labels) != set(spec.label_dims):
            raise UsageError(
                f"array {spec.path!r} with labels {sorted(labels)}; expected a label for each of "
                f"{list(spec.label_dims)}"
            )
        for dim in spec.label_dims:
            if labels[dim] not in there[dim]:
                raise self._unknown(dim, labels[dim], there[dim], spec.path)
        return tuple(there[dim].index(labels[dim]) for dim in spec.label_dims)

    def holds(self, path: str, index: tuple[int, ...]) -> bool:
        """Whether the patient has the volume at `index`; a fold or observer may be lacking."""
        return (path, index) in self._sizes

    def _unknown(
        self, dim: str, label: Label, there: Sequence[Label], path: str
    ) -> UnknownLabelError:
        real = LABEL_ORDER[dim]
        text = f"{dim} {label!r} in {path} of patient {self.metadata.patient_id}"
        if label in real:
            return MissingStructureError(f"{text}: missing here; there are {_listed(there)}")
        return UnknownLabelError(f"{text}: unknown; expected one of {_listed(real)}")

    def read_parts(
        self, parts: Sequence[Part], into: Sequence[Volume] | None = None
    ) -> list[Volume]:
        """Voxels (z, y, x) of every part; a volume that is marked as not present is all zero.

        `into` are arrays of zeros to fill, one of each part's shape. Raises `DamagedStoreError`,
        naming store, array and chunk, for a byte missing or wrong.
        """
        out = list(into) if into is not None else [self._zeros(part) for part in parts]
        wanted = [(n, p) for n, p in enumerate(parts) if out[n].size and self._stored_bytes(p)]
        tails = self._fetch_tails([p for _, p in wanted])
        chunks = [
            c for (n, p), tail in zip(wanted, tails, strict=True) for c in self._chunks(n, p, tail)
        ]
        known = {n: tail for (n, _), tail in zip(wanted, tails, strict=True)}
        fetched = list(self._fetch_chunks(parts, chunks, known))
        self._place_all(parts, fetched, out)
        return out

    def _zeros(self, part: Part) -> Volume:
        shape = tuple(s.stop - s.start for s in part.box)
        return np.zeros(shape, self.array(part.array).dtype)

    @cached_property
    def _codecs(self) -> dict[str, ShardCodec]:
        return {path: array.codec for path, array in self.metadata.arrays.items()}

    @cached_property
    def _sizes(self) -> dict[tuple[str, tuple[int, ...]], int]:
        """Bytes of every shard there is."""
        return {
            (array.spec.path, self.metadata.index(array, record)): record.stored_bytes
            for array in self.metadata.arrays.values()
            for record in array.sources
        }

    def _stored_bytes(self, part: Part) -> int:
        return self._sizes.get((part.array, part.index), 0)

    def _name(self, part: Part) -> str:
        key = shard_key(self.metadata.arrays[part.array].spec, part.index)
        return f"{store_path(self.metadata.patient_id)}/{key}"

    def _where(self, part: Part, place: tuple[int, ...] | None = None) -> str:
        """Store, array, volume and, if given, inner chunk, for messages."""
        spec = self.metadata.arrays[part.array].spec
        there = self.metadata.labels(spec.group)
        labels = [f"{d}={there[d][i]}" for d, i in zip(spec.label_dims, part.index, strict=True)]
        chunk = "" if place is None else f", chunk {place} (z, y, x)"
        named = f"array {part.array}" + (f" [{', '.join(labels)}]" if labels else "")
        return f"{self.location.path(self._name(part))}: {named}{chunk}"

    def _fetch_tails(self, parts: Sequence[Part]) -> list[_Tail]:
        """Index and last bytes of every part's shard; those not known yet in one round."""
        if self._process != os.getpid():  # forked: a fetch of the parent's would never end here
            self._forget()
        keys = [(p.array, p.index) for p in parts]
        with self._lock:
            mine = {k: p for k, p in zip(keys, parts, strict=True) if k not in self._tails}
            futures = {k: self._tails.setdefault(k, Future()) for k in keys}
        if mine:
            self._fill(futures, mine)
        return [futures[k].result() for k in keys]

    def _fill(
        self,
        futures: Mapping[tuple[str, tuple[int, ...]], Future[_Tail]],
        mine: Mapping[tuple[str, tuple[int, ...]], Part],
    ) -> None:
        """Fetch tails for whoever waits for them; forgotten if that fails, to be tried again."""
        done = False
        try:
            for key, tail in zip(mine, self._read_tails(list(mine.values())), strict=True):
                futures[key].set_result(tail)
            done = True
        except OSError as error:
            for key in mine:
                if not futures[key].done():
                    futures[key].set_exception(error)
        finally:
            if not done:
                with self._lock:
                    for key in mine:
                        self._tails.pop(key, None)
                        futures[key].cancel()

    def _read_tails(self, parts: Sequence[Part]) -> list[_Tail]:
        ranges = []
        for part in parts:
            size = self._stored_bytes(part)
            length = max(self._codecs[part.array].index_bytes, TAIL_BYTES)
            ranges.append(Range(self._name(part), max(0, size - length), size))
        fetched = self._read_ranges(ranges, parts)
        return [self._tail(p, r, d) for p, r, d in zip(parts, ranges, fetched, strict=True)]

    def _read_ranges(self, ranges: Sequence[Range], parts: Sequence[Part]) -> list[bytes]:
        """Bytes of ranges; `parts` are those they may be of, to name them in an error."""
        try:
            return self.location.read_ranges(ranges)
        except FileNotFoundError as error:
            named = {self.location.path(self._name(p)): p for p in parts}
            part = named[str(error.filename)]
            where = self._where(part)
            raise DamagedStoreError(
                f"{where}: not there; expected a shard of {self._stored_bytes(part)} bytes; "
                f"{remedy(where)}"
            ) from error

    def _tail(self, part: Part, wanted: Range, data: bytes) -> _Tail:
        if len(data) != wanted.stop - wanted.start:
            where = self._where(part)
            raise DamagedStoreError(
                f"{where}: {wanted.start + len(data)} bytes or fewer; expected {wanted.stop}: the "
                f"file is truncated; {remedy(where)}"
            )
        codec = self._codecs[part.array]
        index = codec.decode_index(data[-codec.index_bytes :], self._where(part))
        return _Tail(index, wanted.start, data)

    def _chunks(self, number: int, part: Part, tail: _Tail) -> Iterator[_Chunk]:
        """The inner chunks that a part's box touches and that are not empty."""
        codec = self._codecs[part.array]
        touched = [
            range(s.start // c, -(-s.stop // c)) for s, c in zip(part.box, codec.chunk, strict=True)
        ]
        for z, y, x in product(*touched):
            row = int(np.ravel_multi_index((z, y, x), codec.grid))
            offset, length = (int(v) for v in tail.index[row])
            if offset != EMPTY:
                yield _Chunk(number, (z, y, x), offset, offset + length)

    def _fetch_chunks(
        self, parts: Sequence[Part], chunks: Sequence[_Chunk], tails: Mapping[int, _Tail]
    ) -> Iterator[tuple[_Chunk, memoryview]]:
        """Every chunk with its bytes: out of the tail where it holds them, else in one round."""
        remote = []
        for chunk in chunks:
            tail = tails[chunk.part]
            if chunk.start >= tail.start:
                kept = memoryview(tail.data)
                yield chunk, kept[chunk.start - tail.start : chunk.stop - tail.start]
            else:
                remote.append(chunk)
        groups = list(_merged(remote))
        ranges = [Range(self._name(parts[g[0].part]), g[0].start, g[-1].stop) for g in groups]
        fetched = self._read_ranges(ranges, parts) if ranges else []
        for group, data in zip(groups, fetched, strict=True):
            base, view = group[0].start, memoryview(data)  # bytes would be copied
            yield from ((c, view[c.start - base : c.stop - base]) for c in group)

    def _place_all(
        self, parts: Sequence[Part], fetched: Sequence[tuple[_Chunk, memoryview]], out: list[Volume]
    ) -> None:
        """Decode all chunks into `out`; many at a time, as each has its own place there."""

        def place(one: tuple[_Chunk, memoryview]) -> None:
            chunk, data = one
            self._place(parts[chunk.part], chunk, data, out[chunk.part])

        if len(fetched) < _FEW_CHUNKS or self.decoders == 1:
            for one in fetched:
                place(one)
            return
        # Of this call alone: a pool kept would have no threads in a forked process.
        with ThreadPoolExecutor(self.decoders) as pool:
            list(pool.map(place, fetched))

    def _place(self, part: Part, chunk: _Chunk, data: memoryview, out: Volume) -> None:
        """Decode a chunk and put what lies in the part's box into `out`."""
        codec = self._codecs[part.array]
        if len(data) != chunk.stop - chunk.start:
            where = self._where(part, chunk.place)
            raise DamagedStoreError(
                f"{where}: {len(data)} bytes; expected {chunk.stop - chunk.start}: the file is "
                f"truncated; {remedy(where)}"
            )
        voxels = codec.decode_chunk(data, self._where(part, chunk.place), _scratch(codec))
        inside, target = [], []
        for place, length, box in zip(chunk.place, codec.chunk, part.box, strict=True):
            first = place * length
            start, stop = max(first, box.start), min(first + length, box.stop)
            inside.append(slice(start - first, stop - first))
            target.append(slice(start - box.start, stop - box.start))
        out[tuple(target)] = voxels[tuple(inside)]


def _scratch(codec: ShardCodec) -> Volume:
    """An array for one chunk, of this thread's: new memory for each costs as much as decoding."""
    key = (codec.chunk, codec.dtype)
    if getattr(_SCRATCH, "key", None) != key:
        _SCRATCH.key, _SCRATCH.array = key, np.empty(codec.chunk, codec.dtype)
    array: Volume = _SCRATCH.array
    return array


def _merged(chunks: Sequence[_Chunk]) -> Iterator[list[_Chunk]]:
    """Chunks of the same part in groups that lie no more than `MERGE_GAP` apart."""
    group: list[_Chunk] = []
    for chunk in sorted(chunks, key=lambda c: (c.part, c.start)):
        if group and (chunk.part != group[-1].part or chunk.start - group[-1].stop > MERGE_GAP):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _clipped(array: VolumeArray, box: Sequence[slice]) -> Box:
    if len(box) != 3 or any(s.step not in (None, 1) for s in box):
        raise UsageError(f"box {tuple(box)}; expected three slices (z, y, x) without a step")
    z, y, x = (s.indices(n)[:2] for s, n in zip(box, array.volume_shape, strict=True))
    return slice(z[0], max(z)), slice(y[0], max(y)), slice(x[0], max(x))


def _listed(labels: Iterable[Label]) -> str:
    return ", ".join(str(label) for label in labels)
