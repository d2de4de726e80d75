"""The reader of a store: boxes of voxels, whole volumes and small arrays, straight from objects.

A store's metadata says where each shard is, how long it is, and how its inner chunks are laid out.
So a first patch takes two rounds of concurrent requests: the shard indices, then the inner chunks.
A second patch of the same patient takes one round. A whole volume takes one request.
Every checksum is compared. A missing shard is an error and never reads as zeros.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import (
    DamagedStoreError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.schema.document import CRC_BYTES, crc32c, sha256_of
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.decode_pool import DECODERS, Scratch, decode, decode_in_turn, scratch
from lundprobe_zarr.storage.local import LocalFiles
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.reread import read_verified
from lundprobe_zarr.stores.metadata import StoreMetadata, VolumeArray, shard_key
from lundprobe_zarr.stores.opening import Unchanged, open_store
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.shard import EMPTY, Box, ShardCodec
from lundprobe_zarr.vocabulary.files import Label

Volume = npt.NDArray[Any]
#: Makes the arrays that are filled.
Into = Callable[[], Sequence[Volume]]
#: A volume of a store: its array's path and its index there.
_Key = tuple[str, tuple[int, ...]]

#: Inner chunks this close are fetched in one request, with the bytes between them: those take
#: about a millisecond on a fast line, a request takes tens. Rows of a full-size patch are
#: five chunks or some 500 kB apart in an image, and next to nothing in a mask.
MERGE_GAP = 128 * 1024
#: Bytes fetched first from a shard's end, index included. That is all of most masks, which then
#: need no other request.
INDEX_READ_BYTES = 64 * 1024
#: Chunks per decoding task that make waking a thread worthwhile; each takes some 0.1 ms.
_FEW_CHUNKS = 3
#: Selections that a reader remembers to be expected, the latest.
_MOST_EXPECTED = 64
#: Indices of expected volumes that are fetched with those that are wanted, at most: 1 MB.
_MOST_AHEAD = 16


@dataclass(frozen=True)
class Part:
    """A box of voxels (z, y, x) of one volume, named by array and places of its labels."""

    array: str
    index: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class _ShardIndex:
    """A shard's index (chunks, 2) and its last bytes, from byte `start` on."""

    entries: npt.NDArray[np.uint64]
    start: int
    data: bytes


class _Expected(NamedTuple):
    """Parts that may be read soon, as long as somebody holds the selection that they are of."""

    selection: weakref.ref[Any]
    parts: Sequence[Part]


class _Target(NamedTuple):
    """Where a chunk's voxels go: those of its box `of` (z, y, x) to the box `to` of a part."""

    part: int
    of: Box
    to: Box


class _Chunk(NamedTuple):
    """An inner chunk to fetch: bytes of the shard, its place in the grid, and its targets."""

    start: int
    stop: int
    place: tuple[int, int, int]
    targets: Sequence[_Target]


class _Run(NamedTuple):
    """Chunks of a volume fetched together: from byte `start` of its shard on.

    `part` is the number of the first part of that volume.
    """

    part: int
    chunks: Sequence[_Chunk]
    start: int
    data: bytes | None = None


class StoreReader:
    """The one reader of one patient's store, at any location.

    It keeps the indices of the shards it has read, a few kilobytes each. Threads may share it. It
    pickles without what it keeps.
    """

    def __init__(
        self, location: Location, metadata: StoreMetadata, decoders: int = DECODERS
    ) -> None:
        self.location = location
        self.metadata = metadata
        #: Tasks that one read is decoded in; use one where many threads read already.
        self.decoders = decoders
        self._expected: deque[_Expected] = deque(maxlen=_MOST_EXPECTED)
        self._forget()

    @classmethod
    def open(cls, location: Location, patient_id: str) -> StoreReader:
        """Return a reader of a patient's store; one request. Raises `DamagedStoreError`."""
        return cls(location, open_store(location, patient_id))

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._indices: dict[_Key, Future[_ShardIndex]] = {}
        self._names: dict[_Key, str] = {}
        self.unchanged = Unchanged(self.location, self.metadata)

    def __getstate__(self) -> dict[str, Any]:
        return {k: self.__dict__[k] for k in ("location", "metadata", "decoders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._expected = deque(maxlen=_MOST_EXPECTED)
        self._forget()

    def read(
        self, volumes: Iterable[tuple[str, Mapping[str, Label]]], box: Sequence[slice]
    ) -> list[Volume]:
        """Read the same box (z, y, x) of several volumes, each in its array's type.

        A volume is an array's path and its labels, e.g. `("mri/image", {"modality": "T2w"})`.
        Slices are of voxels, clipped to the volume as NumPy does. Raises `UnknownLabelError` for
        an unknown array or label, `MissingStructureError` for a structure this patient
        lacks, `DamagedStoreError` for a byte that is missing or wrong.
        """
        parts = []
        for path, labels in volumes:
            array = self.array(path)
            parts.append(Part(path, self.index(array, labels), _clipped(array, box)))
        return self.read_parts(parts)

    def array(self, path: str) -> VolumeArray:
        """Return the array of volumes at `path`; raises `UnknownLabelError` if there is none."""
        if path not in self.metadata.arrays:
            raise UnknownLabelError(
                f"no array {path!r} in the store of {self.metadata.patient_id}",
                remedy=f"it has {', '.join(self.metadata.arrays)}",
            )
        return self.metadata.arrays[path]

    def index(self, array: VolumeArray, labels: Mapping[str, Label]) -> tuple[int, ...]:
        """Return the position of the volume with `labels` in its array; raises as `read` does."""
        spec, there = array.spec, self.metadata.labels(array.spec.group)
        if set(labels) != set(spec.label_dims):
            raise UsageError(
                f"array {spec.path!r} with labels {sorted(labels)}",
                expected=f"a label for each of {list(spec.label_dims)}",
            )
        for dim in spec.label_dims:
            if labels[dim] not in there[dim]:
                raise self._unknown(dim, labels[dim], there[dim], spec.path)
        return tuple(there[dim].index(labels[dim]) for dim in spec.label_dims)

    def holds(self, path: str, index: tuple[int, ...]) -> bool:
        """Return whether the patient has the volume at `index`; folds, observers may be missing."""
        return (path, index) in self._records

    def _unknown(
        self, dim: str, label: Label, there: Sequence[Label], path: str
    ) -> UnknownLabelError:
        real = LABEL_ORDER[dim]
        text = f"{dim} {label!r} in {path} of patient {self.metadata.patient_id}"
        if label in real:
            return MissingStructureError(
                "missing here", where=text, remedy=f"there are {_listed(there)}"
            )
        return UnknownLabelError("unknown", where=text, expected=f"one of {_listed(real)}")

    def read_parts(self, parts: Sequence[Part], into: Into | None = None) -> list[Volume]:
        """Read the voxels (z, y, x) of every part; a volume marked as not present is all zero.

        A chunk that several parts touch is fetched and decoded once.

        `into` returns arrays to fill, one of each part's shape; their values are overwritten. It is
        called once everything is fetched, and again if damaged bytes are fetched again. Raises
        `DamagedStoreError`, naming store, array and chunk, for a byte missing or wrong,
        `ChangedStoreError` if the store was replaced since it was opened: see
        `stores.opening.Unchanged`.
        """
        with self.unchanged.during():
            return self._read_parts(parts, into)

    def expect(self, selection: object, parts: Sequence[Part]) -> None:
        """Say that `parts` may be read soon, as long as somebody holds `selection`.

        The first read of a patient then fetches their shards' indices together with its own, in
        one round of requests, and so a part of a structure most often whole. From a disk nothing
        is fetched ahead.
        """
        if not self.location.is_local:
            self._expected.append(_Expected(weakref.ref(selection), parts))

    def _read_parts(self, parts: Sequence[Part], into: Into | None) -> list[Volume]:
        def may_be_spoilt(_: DamagedStoreError) -> bool:
            """Fetch everything again: the bytes may have been damaged in transit."""
            self._doubt(parts)
            return True

        return self.location.retry.repeat(
            lambda: self._read_into(parts, into), DamagedStoreError, may_be_spoilt
        )

    def volume(self, array: VolumeArray, record: SourceRecord, verify: bool = False) -> Volume:
        """Read the whole volume (z, y, x) that a source file fills, in the array's type.

        One request; memory for the shard and the volume. Every checksum in the shard is compared,
        with `verify` its recorded SHA-256 too. Raises as `read_parts` does.
        """
        box = tuple(slice(0, n) for n in array.volume_shape)
        part = Part(array.spec.path, self.metadata.index(array, record), (box[0], box[1], box[2]))
        if not record.stored_bytes:
            return self._zeros(part)
        # A byte more than there should be tells a longer object.
        wanted = Range(self._name(part), 0, record.stored_bytes + 1)
        with self.unchanged.during():
            return read_verified(
                self.location,
                wanted.name,
                lambda: self._read_ranges([wanted], [part])[0],
                lambda shard: self._whole(part, shard, record.stored_sha256 if verify else None),
            )

    def _whole(self, part: Part, shard: bytes, expected: str | None) -> Volume:
        """Decode a whole shard; `expected` is its SHA-256, None if that need not be compared."""
        size = self._stored_bytes(part)
        if len(shard) > size:
            raise self._place_of(part).damaged(f"more than {size} bytes", f"{size} bytes")
        index = self._index_of(part, Range(self._name(part), 0, size), shard)
        runs, _ = self._runs([part], {0: index})
        shares = [
            run._replace(chunks=run.chunks[n :: self.decoders])
            for run in runs
            for n in range(min(self.decoders, len(run.chunks)))
        ]
        out = self._zeros(part)
        self._place_all([part], shares, [out])
        if expected not in (None, sha256_of(shard)):
            finding = f"SHA-256 differs from {expected}, recorded when written"
            raise self._place_of(part).damaged(finding)
        return out

    def small_array(self, path: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Volume:
        """Read a flag or position array: one object, its values and their CRC-32C.

        Raises as `read_parts` does.
        """
        key = "/".join((path, "c", *("0" for _ in shape)))
        patient_id = self.metadata.patient_id
        place = replace(self.metadata.where, name=key, detail=f"array {path}, chunk 0")
        name, size = f"{store_path(patient_id)}/{key}", math.prod(shape) * dtype.itemsize

        def decoded(data: bytes) -> Volume:
            """Check the length and the checksum, and return the values."""
            if len(data) != size + CRC_BYTES:
                raise place.damaged(f"{len(data)} bytes", f"{size + CRC_BYTES} bytes")
            if crc32c(data[:size]) != data[size:]:
                raise place.damaged(f"{len(data)} bytes that fail their checksum")
            return np.frombuffer(data[:size], dtype.newbyteorder("<")).reshape(shape)

        with self.unchanged.during():
            try:
                return read_verified(self.location, name, lambda: self.location.read(name), decoded)
            except FileNotFoundError as error:
                raise place.damaged("not there") from error

    def _doubt(self, parts: Sequence[Part]) -> None:
        """Drop what is kept of these parts, indices included, so that they are fetched again."""
        with self._lock:
            for part in parts:
                self._indices.pop((part.array, part.index), None)
        self.location.forget(f"{store_path(self.metadata.patient_id)}/zarr.json")

    def _read_into(self, parts: Sequence[Part], into: Into | None) -> list[Volume]:
        wanted = [(n, p) for n, p in enumerate(parts) if _voxels(p) and self._stored_bytes(p)]
        indices = self._fetch_indices([p for _, p in wanted])
        known = {n: index for (n, _), index in zip(wanted, indices, strict=True)}
        kept, lacking = self._runs(parts, known)
        if not self.location.is_local:
            lacking = self._fetch(lacking, parts)  # in one round; else each as it is decoded
        runs = [*kept, *lacking]
        if self.decoders == 1 and not self.location.is_local:
            # Threads that read from a server may be many. In a main thread Ctrl-C could lose a
            # turn; only commands that end by it read so there.
            return decode_in_turn(lambda: self._decoded(parts, runs, into))
        return self._decoded(parts, runs, into)

    def _decoded(
        self, parts: Sequence[Part], runs: Sequence[_Run], into: Into | None
    ) -> list[Volume]:
        if into is None:
            out = [self._zeros(part) for part in parts]
        else:
            out = list(into())
            self._clear(parts, runs, out)
        self._place_all(parts, runs, out)
        return out

    def _clear(self, parts: Sequence[Part], runs: Sequence[_Run], out: Sequence[Volume]) -> None:
        """Set to zero the arrays that chunks do not fill completely."""
        chunks = (chunk for run in runs for chunk in run.chunks)
        found = Counter(target.part for chunk in chunks for target in chunk.targets)
        for number, part in enumerate(parts):
            chunk = self._codecs[part.array].chunk
            touched = (len(_touched(s, c)) for s, c in zip(part.box, chunk, strict=True))
            if found[number] < math.prod(touched):
                out[number].fill(0)

    def _zeros(self, part: Part) -> Volume:
        return np.zeros(_shape(part), self.array(part.array).dtype)

    @cached_property
    def _codecs(self) -> dict[str, ShardCodec]:
        return {path: array.codec for path, array in self.metadata.arrays.items()}

    @cached_property
    def _records(self) -> dict[tuple[str, tuple[int, ...]], SourceRecord]:
        """The source record of every volume present, with its shard's size and SHA-256."""
        return {
            (array.spec.path, self.metadata.index(array, record)): record
            for array in self.metadata.arrays.values()
            for record in array.sources
        }

    def _stored_bytes(self, part: Part) -> int:
        record = self._records.get((part.array, part.index))
        return 0 if record is None else record.stored_bytes

    def _name(self, part: Part) -> str:
        key = part.array, part.index
        if key not in self._names:
            shard = shard_key(self.metadata.arrays[part.array].spec, part.index)
            self._names[key] = f"{store_path(self.metadata.patient_id)}/{shard}"
        return self._names[key]

    def _place_of(self, part: Part, place: Sequence[int] | None = None) -> StorePlace:
        """Return the store, array, volume and optional inner chunk, for messages."""
        spec = self.metadata.arrays[part.array].spec
        there = self.metadata.labels(spec.group)
        labels = [f"{d}={there[d][i]}" for d, i in zip(spec.label_dims, part.index, strict=True)]
        chunk = "" if place is None else f", chunk {tuple(place)} (z, y, x)"
        named = f"array {part.array}" + (f" [{', '.join(labels)}]" if labels else "")
        shard = shard_key(spec, part.index)
        return replace(self.metadata.where, name=shard, detail=f"{named}{chunk}")

    def _fetch_indices(self, parts: Sequence[Part]) -> list[_ShardIndex]:
        """Return every part's shard index; fetch unknown ones in one round of requests."""
        if self._process != os.getpid():  # forked: fetches of the parent never end here
            self._forget()
        keys = [(p.array, p.index) for p in parts]
        while True:
            with self._lock:
                mine = {k: p for k, p in zip(keys, parts, strict=True) if k not in self._indices}
                ahead = self._to_fetch_with(mine) if mine else {}
                futures = {k: self._indices.setdefault(k, Future()) for k in (*keys, *ahead)}
            if mine:
                self._fill(futures, mine, ahead)
            try:
                return [futures[k].result() for k in keys]
            except CancelledError:  # another thread could not fetch ahead what is wanted here
                continue

    def _to_fetch_with(self, mine: Collection[_Key]) -> dict[_Key, Part]:
        """Return expected volumes whose indices are not known, nor among `mine`."""
        found: dict[_Key, Part] = {}
        for expected in self._expected.copy():
            parts = expected.parts if expected.selection() is not None else ()
            found |= {(p.array, p.index): p for p in parts if self._stored_bytes(p)}
        new = [key for key in found if key not in self._indices and key not in mine]
        return {key: found[key] for key in new[-_MOST_AHEAD:]}

    def _fill(
        self,
        futures: Mapping[_Key, Future[_ShardIndex]],
        mine: Mapping[_Key, Part],
        ahead: Mapping[_Key, Part],
    ) -> None:
        """Fetch indices for all threads that wait for them; drop them on failure, for a new try."""
        fetched = {**mine, **ahead}
        done = False
        try:
            for key, index in zip(fetched, self._read_all(mine, ahead), strict=False):
                futures[key].set_result(index)
            done = True
        except OSError as error:
            for key in mine:
                if not futures[key].done():
                    futures[key].set_exception(error)
        finally:
            lacking = [key for key in fetched if not (done and futures[key].done())]
            with self._lock:
                for key in lacking:
                    self._indices.pop(key, None)
            for key in lacking:
                futures[key].cancel()

    def _read_all(self, mine: Mapping[_Key, Part], ahead: Mapping[_Key, Part]) -> list[_ShardIndex]:
        """Read the indices of `mine` and of `ahead`; of `mine` alone if it is `ahead` that fails.

        What is wrong with a volume is said to those who read it.
        """
        parts = list(mine.values())
        if ahead:
            try:
                return self._read_indices([*parts, *ahead.values()])
            except OSError as error:
                places = [self.location.path(self._name(part)) for part in parts]
                if getattr(error, "where", None) in places:
                    raise
        return self._read_indices(parts)

    def _read_indices(self, parts: Sequence[Part]) -> list[_ShardIndex]:
        ranges = []
        for part in parts:
            size = self._stored_bytes(part)
            length = max(self._codecs[part.array].index_bytes, INDEX_READ_BYTES)
            ranges.append(Range(self._name(part), max(0, size - length), size))
        fetched = self._read_ranges(ranges, parts)
        return [self._index_of(p, r, d) for p, r, d in zip(parts, ranges, fetched, strict=True)]

    def _read_ranges(self, ranges: Sequence[Range], parts: Sequence[Part]) -> list[bytes]:
        """Read ranges; `parts` are those they may belong to, named in errors."""
        try:
            return self.location.read_ranges(ranges)
        except FileNotFoundError as error:
            named = {self.location.path(self._name(p)): p for p in parts}
            raise self._gone(named[str(error.filename)]) from error

    def _gone(self, part: Part) -> DamagedStoreError:
        expected = f"a shard of {self._stored_bytes(part)} bytes"
        return self._place_of(part).damaged("not there", expected)

    def _index_of(self, part: Part, wanted: Range, data: bytes) -> _ShardIndex:
        if len(data) != wanted.stop - wanted.start:
            found = f"{wanted.start + len(data)} bytes or fewer: the file is truncated"
            raise self._place_of(part).damaged(found, f"{wanted.stop} bytes")
        codec = self._codecs[part.array]
        try:
            entries = codec.decode_index(data[-codec.index_bytes :], wanted.stop)
        except DamagedStoreError as error:
            raise self._place_of(part).damaged(error.finding, error.expected) from error
        if wanted.start == 0 and not self.location.is_local:
            self._require_shard(part, data)
        return _ShardIndex(entries, wanted.start, data)

    def _require_shard(self, part: Part, data: bytes) -> None:
        """Require that a whole shard is of this store: another's may be sound and as long.

        Damage is found later, by the checksums of its chunks.
        """
        expected = self._records[part.array, part.index].stored_sha256
        if sha256_of(data) != expected:
            self.unchanged.require_root()

    def _chunks(
        self, parts: Sequence[Part], numbers: Sequence[int], index: _ShardIndex
    ) -> list[_Chunk]:
        """Return the non-empty chunks that parts of one volume touch, each once, in stored order.

        `numbers` are those of the parts.
        """
        codec = self._codecs[parts[numbers[0]].array]
        touched: dict[int, tuple[tuple[int, int, int], list[_Target]]] = {}
        for number in numbers:
            spans = tuple((s.start, s.stop) for s in parts[number].box)
            for chunk, place, of, to in _crossed(spans, codec.chunk, codec.grid):
                touched.setdefault(chunk, (place, []))[1].append(_Target(number, of, to))
        entries = index.entries[list(touched)].tolist()
        chunks = [
            _Chunk(offset, offset + length, place, targets)
            for (offset, length), (place, targets) in zip(entries, touched.values(), strict=True)
            if offset != EMPTY
        ]
        chunks.sort(key=_start)
        return chunks

    def _runs(
        self, parts: Sequence[Part], indices: Mapping[int, _ShardIndex]
    ) -> tuple[list[_Run], list[_Run]]:
        """Return all chunks of the parts in runs: those fetched with the index, those to fetch."""
        volumes: dict[_Key, list[int]] = {}
        for number in indices:
            part = parts[number]
            volumes.setdefault((part.array, part.index), []).append(number)
        kept, lacking = [], []
        for numbers in volumes.values():
            first, index = numbers[0], indices[numbers[0]]
            chunks = self._chunks(parts, numbers, index)
            split = bisect_left(chunks, index.start, key=_start)
            if chunks[split:]:
                kept.append(_Run(first, chunks[split:], index.start, index.data))
            gap = -1 if self.location.is_local else MERGE_GAP
            lacking += [_Run(first, run, run[0].start) for run in _merged(chunks[:split], gap)]
        return kept, lacking

    def _fetch(self, runs: Sequence[_Run], parts: Sequence[Part]) -> list[_Run]:
        ranges = [self._range(run, parts) for run in runs]
        found = self._read_ranges(ranges, parts) if ranges else []
        return [r._replace(data=d) for r, d in zip(runs, found, strict=True)]

    def _range(self, run: _Run, parts: Sequence[Part]) -> Range:
        return Range(self._name(parts[run.part]), run.start, run.chunks[-1].stop)

    def _place_all(self, parts: Sequence[Part], runs: Sequence[_Run], out: list[Volume]) -> None:
        """Decode all chunks into `out`, in tasks: no two chunks share a voxel."""
        pending = iter(runs)  # tasks may share it: next() is atomic
        tasks = self._tasks(runs)
        with LocalFiles(self.location.local, self.location.explained) as files:
            place = partial(self._place_runs, parts, pending, files, out)
            if tasks:
                decode(tasks, place)
            else:
                place()

    def _tasks(self, runs: Sequence[_Run]) -> int:
        """Return the number of tasks for the decoding threads; 0 is to decode in this thread."""
        tasks = min(self.decoders, len(runs), sum(len(r.chunks) for r in runs) // _FEW_CHUNKS)
        return tasks if tasks > 1 else 0

    def _place_runs(
        self, parts: Sequence[Part], runs: Iterator[_Run], files: LocalFiles, out: list[Volume]
    ) -> None:
        memory = scratch()
        for run in runs:
            part = parts[run.part]
            if run.data is None:
                data = self._read_local(self._range(run, parts), part, files)
            else:
                data = np.frombuffer(run.data, np.uint8)
            for chunk in run.chunks:
                piece = data[chunk.start - run.start : chunk.stop - run.start]
                self._place(part, chunk, piece, out, memory)

    def _read_local(self, wanted: Range, part: Part, files: LocalFiles) -> npt.NDArray[np.uint8]:
        try:
            return files.read(wanted.name, wanted.start, wanted.stop)
        except FileNotFoundError as error:
            raise self._gone(part) from error

    def _place(
        self,
        part: Part,
        chunk: _Chunk,
        data: npt.NDArray[np.uint8],
        out: Sequence[Volume],
        memory: Scratch,
    ) -> None:
        """Decode a chunk of a part's volume, and copy its voxels to their targets in `out`."""
        codec = self._codecs[part.array]
        if len(data) != chunk.stop - chunk.start:
            raise self._place_of(part, chunk.place).damaged(
                f"{len(data)} bytes: the file is truncated", f"{chunk.stop - chunk.start} bytes"
            )
        try:
            voxels = codec.decode_chunk(data, memory.array("chunk", codec.chunk, codec.dtype))
        except DamagedStoreError as error:
            place = self._place_of(part, chunk.place)
            raise place.damaged(error.finding, error.expected) from error
        for target in chunk.targets:
            out[target.part][target.to] = voxels[target.of]


def _shape(part: Part) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in part.box)


def _voxels(part: Part) -> int:
    return math.prod(_shape(part))


_start = attrgetter("start")


@lru_cache(maxsize=64)  # all masks of a patch have chunks in the same places
def _crossed(
    box: tuple[tuple[int, int], ...], chunk: tuple[int, ...], grid: tuple[int, ...]
) -> list[tuple[int, tuple[int, int, int], Box, Box]]:
    """Of each chunk that a box touches: number, place, and the boxes of a `_Target`."""
    # Plain Python: there are some tens of chunks, too few to gain by NumPy.
    z, y, x = (
        [_cut(p, c, *s) for p in _touched(slice(*s), c)] for s, c in zip(box, chunk, strict=True)
    )
    return [
        ((pz * grid[1] + py) * grid[2] + px, (pz, py, px), (oz, oy, ox), (tz, ty, tx))
        for (pz, oz, tz), (py, oy, ty), (px, ox, tx) in product(z, y, x)
    ]


def _cut(place: int, length: int, start: int, stop: int) -> tuple[int, slice, slice]:
    """Voxels of a chunk within a span along one axis: its place, they in it and in the span."""
    corner = place * length
    first, last = max(corner, start), min(corner + length, stop)
    return place, slice(first - corner, last - corner), slice(first - start, last - start)


def _touched(span: slice, length: int) -> range:
    """Places in the grid of the chunks, `length` voxels long, that a span of voxels touches."""
    return range(span.start // length, -(-span.stop // length))


def _merged(chunks: Sequence[_Chunk], gap: int) -> Iterator[list[_Chunk]]:
    """Chunks of one part, in the shard's order, in groups with gaps of no more than `MERGE_GAP`."""
    group: list[_Chunk] = []
    for chunk in chunks:
        if group and chunk.start - group[-1].stop > gap:
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _clipped(array: VolumeArray, box: Sequence[slice]) -> Box:
    if len(box) != 3 or any(s.step not in (None, 1) for s in box):
        raise UsageError(f"box {tuple(box)}", expected="three slices (z, y, x) without a step")
    z, y, x = (s.indices(n)[:2] for s, n in zip(box, array.volume_shape, strict=True))
    return slice(z[0], max(z)), slice(y[0], max(y)), slice(x[0], max(x))


def _listed(labels: Iterable[Label]) -> str:
    return ", ".join(str(label) for label in labels)
