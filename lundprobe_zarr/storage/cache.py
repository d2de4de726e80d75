"""A bounded cache on a local disk of what was read from afar, shared between processes.

Each object has one sparse file: a map of which blocks of it are there, then its bytes. A block is
marked once it is written, so a killed process leaves no block that is wrongly marked. Bytes that a
failing disk spoils fail the checksum of their chunk and are fetched again. Objects that are read
whole appear by a rename and carry a checksum of their own. The least recently
used is evicted first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.schema.document import CRC_BYTES, crc32c, sha256_of
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.retry import UNKNOWN

#: Bytes that are fetched and marked at a time. Ranges are rounded to these: some percent of what a
#: patch takes, and what the next patch of the same patient may need.
BLOCK = 32 * 1024
#: Room for the map, a byte a block: objects of up to 32 GiB, and it is sparse.
_MAP_BYTES = 1024 * 1024
#: A process looks after the cache's size each time it has written this part of the limit.
_CHECK_EVERY = 1 / 32
#: Down to which part of the limit the cache is then cut, so that this is not done all the time.
_CUT_TO = 0.9
#: Seconds within which a second use of an object is not noted.
_NOTED_FOR = 30.0
#: Files whose use a process remembers to have noted.
_MOST_NOTED = 10_000


class CachedLocation(Location):
    """A location that keeps what is read of it in a folder of a local disk.

    `identity` tells this state of the dataset from any other at the same URL. The cache takes
    `limit` bytes and, for each process that fills it, up to a thirty-second of that more for a
    while. What is written goes to the dataset itself. Raises `UsageError` for a limit that makes
    no sense or a folder that cannot be used.
    """

    def __init__(
        self, inner: Location, folder: str | os.PathLike[str], limit: int, identity: str
    ) -> None:
        self.__dict__.update(inner.__dict__)
        if limit < 1:
            raise UsageError(f"a cache of {limit} bytes", expected="some, e.g. 50 * 10**9")
        self._folder = Path(folder)
        self._limit = limit
        digest = sha256_of(f"{inner.url}\n{identity}".encode())
        self._home = self._folder / digest[:16]
        self._written = 0
        self._noted: dict[Path, float] = {}
        self._lock = threading.Lock()
        try:
            self._home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cache folder {self._folder}: {error}", expected="a folder that can be written to"
            ) from error
        self._trim()

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_lock": None, "_noted": {}}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _file(self, name: str, suffix: str) -> Path:
        """Where an object is kept: in a folder of its patient's."""
        return self._home / _kept_as(name, suffix)

    def forget(self, relative: str) -> None:
        """Drop what is kept of an object, and of all of its patient: it turned out damaged."""
        shutil.rmtree(self._file(relative, "").parent, ignore_errors=True)

    def read(self, relative: str, size: int = UNKNOWN) -> bytes:
        """Return the contents of one object, cached or fetched; raise as `Location.read` does."""
        file = self._file(relative, "whole")
        with suppress(FileNotFoundError):
            kept = file.read_bytes()
            data, crc = kept[:-CRC_BYTES], kept[-CRC_BYTES:]
            if crc32c(data) == crc:
                self._note_use(file)
                return data
        data = super().read(relative, size)
        with self._writing(file, len(data)):
            temporary = file.with_suffix(f".{uuid.uuid4().hex}")
            temporary.write_bytes(data + crc32c(data))
            temporary.replace(file)
        return data

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of every range; blocks that are not cached are fetched at the same time.

        Raises as `Location.read_ranges` does.
        """
        found = self._take(ranges)
        lacking = [r for r, data in zip(ranges, found, strict=True) if data is None]
        if lacking:
            self._fetch(lacking)
            taken = iter(self._take(lacking))
            found = [next(taken) if data is None else data for data in found]
        # Evicted by another process, or too large to keep: read without the cache.
        left = [r for r, data in zip(ranges, found, strict=True) if data is None]
        rest = iter(super().read_ranges(left) if left else ())
        return [next(rest) if data is None else data for data in found]

    def _take(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """Bytes of each range if all of its blocks are kept, else None; opens each file once."""
        found: list[bytes | None] = [None] * len(ranges)
        for name, places in _by_name(ranges).items():
            file = self._file(name, "part")
            try:
                descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                for place in places:
                    found[place] = _kept_range(descriptor, ranges[place])
                self._note_use(file)
            finally:
                os.close(descriptor)
        return found

    def _note_use(self, file: Path) -> None:
        """Have a file's time of last use within half a minute of now."""
        now = time.monotonic()
        if now - self._noted.get(file, -_NOTED_FOR) < _NOTED_FOR:
            return
        if len(self._noted) > _MOST_NOTED:
            self._noted.clear()
        self._noted[file] = now
        with suppress(FileNotFoundError):
            os.utime(file)

    def _fetch(self, ranges: Sequence[Range]) -> None:
        """Fetch and keep all blocks that the ranges touch and that are not kept."""
        wanted: dict[str, set[int]] = {}
        for r in ranges:
            blocks = range(r.start // BLOCK, min(-(-r.stop // BLOCK), _MAP_BYTES))
            wanted.setdefault(r.name, set()).update(blocks)
        runs = [
            Range(name, first * BLOCK, end * BLOCK)
            for name, blocks in wanted.items()
            for first, end in _runs(sorted(blocks - self._kept(name, blocks)))
        ]
        for run, data in zip(runs, super().read_ranges(runs) if runs else (), strict=True):
            self._keep(run, data)

    def _kept(self, name: str, blocks: set[int]) -> set[int]:
        try:
            with self._file(name, "part").open("rb", buffering=0) as file:
                marks = os.pread(file.fileno(), max(blocks) + 1, 0)
        except FileNotFoundError:
            return set()
        return {b for b in blocks if marks[b : b + 1] == b"\1"}

    def _keep(self, run: Range, data: bytes) -> None:
        """Write a run of blocks, then mark them; the last may be the object's end."""
        if not data:
            return
        file = self._file(run.name, "part")
        with self._writing(file, len(data)):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.pwrite(descriptor, data, _MAP_BYTES + run.start)
                os.pwrite(descriptor, b"\1" * -(-len(data) // BLOCK), run.start // BLOCK)
            finally:
                os.close(descriptor)

    @contextmanager
    def _writing(self, file: Path, size: int) -> Iterator[None]:
        """Around writing `size` bytes to `file`: counts them, and cuts the cache when it is due."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # cut away by another process under our hands
                yield
        except OSError as error:
            raise DatasetError(
                f"cache folder {self._folder}: cannot be written ({error})",
                remedy="make room there, or choose another folder or a smaller limit",
            ) from error
        with self._lock:
            self._written += size
            due = self._written > self._limit * _CHECK_EVERY
            if due:
                self._written = 0
        if due:
            self._trim()

    def _trim(self) -> None:
        """Delete what was not used for longest until the cache is within its limit again."""
        with (self._folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return  # another process is at it
                raise
            files = sorted(_files(self._folder))
            total = sum(size for _, size, _ in files)
            if total <= self._limit:
                return
            for _, size, file in files:
                if total <= self._limit * _CUT_TO:
                    return
                file.unlink(missing_ok=True)
                total -= size


@lru_cache(maxsize=4096)
def _kept_as(name: str, suffix: str) -> Path:
    group = "/".join(name.split("/")[:2]) if name.count("/") > 1 else "root"
    leaf = sha256_of(name.encode())[:32]
    return Path(group.replace("/", "-"), f"{leaf}.{suffix}")


def _by_name(ranges: Sequence[Range]) -> dict[str, list[int]]:
    """Places of the ranges of every object."""
    places: dict[str, list[int]] = {}
    for place, wanted in enumerate(ranges):
        places.setdefault(wanted.name, []).append(place)
    return places


def _kept_range(descriptor: int, wanted: Range) -> bytes | None:
    """Bytes of a range of an open file if all of its blocks are kept."""
    first, end = wanted.start // BLOCK, -(-wanted.stop // BLOCK)
    if end > _MAP_BYTES or os.pread(descriptor, end - first, first) != b"\1" * (end - first):
        return None
    return os.pread(descriptor, wanted.stop - wanted.start, _MAP_BYTES + wanted.start)


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each kept file was last used, the bytes it takes on the disk, and its path."""
    for file in folder.glob("*/*/*"):
        with suppress(FileNotFoundError):
            status = file.stat()
            yield status.st_mtime, status.st_blocks * 512, file


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and end of every run of successive numbers."""
    start = 0
    for place in range(1, len(blocks) + 1):
        if place == len(blocks) or blocks[place] != blocks[place - 1] + 1:
            yield blocks[start], blocks[place - 1] + 1
            start = place
