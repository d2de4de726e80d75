"""Copy a dataset between any two locations and verify the copy.

Readers start from a store's root metadata and from the dataset's manifest. Both are written last,
so that a reader finds a complete dataset or none. An interrupted copy is resumed: objects that are
at the destination are compared, and not sent again if they are the same.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass

from lundprobe_zarr.dataset.objects import (
    ROOT,
    SIDE_FILES,
    StoreObject,
    is_metadata,
    store_objects,
    table_files,
)
from lundprobe_zarr.dataset.opening import holds_source, read_manifest, read_table
from lundprobe_zarr.errors import (
    Command,
    DatasetError,
    UsageError,
    VerificationError,
)
from lundprobe_zarr.integrity.foreign import foreign_files
from lundprobe_zarr.schema.document import sha256_of
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.access import require_private
from lundprobe_zarr.storage.local import require_folder
from lundprobe_zarr.storage.location import Entry, Location, Range, md5
from lundprobe_zarr.storage.reread import read_object, read_verified
from lundprobe_zarr.storage.retry import UNKNOWN
from lundprobe_zarr.stores.opening import read_verified_store
from lundprobe_zarr.stores.place import StorePlace

#: Objects up to this size are compared whole with those at the destination: a request costs more.
_SMALL = 1 << 20
#: Of larger objects the last bytes are compared. They hold the shard index with the place, length
#: and checksum of every chunk, so shards of equal size and equal ends are equal.
_END = 1 << 16
_SERVER = ("endpoint_url", "account_name", "account_host")


@dataclass(frozen=True)
class CopiedStore:
    """Result of copying a store: objects and bytes sent, and the error if it failed."""

    patient_id: str
    objects: int = 0
    sent: int = 0
    sent_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True)
class CopyReport:
    """Result of `copy_dataset`: every store, and the tables, side files and manifest sent."""

    stores: tuple[CopiedStore, ...]
    files: int = 0
    file_bytes: int = 0

    @property
    def failures(self) -> tuple[CopiedStore, ...]:
        """Stores that could not be copied."""
        return tuple(s for s in self.stores if s.error is not None)

    @property
    def sent(self) -> int:
        """Number of objects sent."""
        return self.files + sum(s.sent for s in self.stores)

    @property
    def sent_bytes(self) -> int:
        """Number of bytes sent."""
        return self.file_bytes + sum(s.sent_bytes for s in self.stores)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        about = {"complete": not self.failures, "sent": self.sent, "sent_bytes": self.sent_bytes}
        return json.dumps(about | asdict(self), indent=2) + "\n"


def copy_dataset(
    source: Location,
    destination: Location,
    workers: int = 8,
    overwrite: bool = False,
    reverify: bool = False,
    on_store: Callable[[CopiedStore], None] = lambda store: None,
    allow_public: bool = False,
) -> CopyReport:
    """Copy the dataset at `source` to `destination`, or resume an interrupted copy.

    Each sent object is verified: by the MD5 that the server gives, else by reading it back. Objects
    at the destination are kept if they are the same. Small ones are compared whole, shards by size
    and index; with `reverify` all are compared whole.

    A store that cannot be copied is reported, and the other stores are copied. The manifest is then
    not written.

    Parameters
    ----------
    source, destination : Location
        The dataset, and where its copy is to be.
    workers : int
        Objects copied at a time. Each is held in memory: up to the largest shard, some 100 MB.
    overwrite : bool
        Replace another dataset, or files that are not of a dataset.
    reverify : bool
        Compare objects at the destination whole.
    on_store : callable
        Called with the result of each store.
    allow_public : bool
        Copy to a destination that anyone can read.

    Raises
    ------
    UsageError
        If another dataset or other files are at the destination and not `overwrite`; if
        `destination` is a file, a source tree, or lies within `source`; if anyone can read it and
        not `allow_public`.
    NotADatasetError
        If there is no dataset at `source`.
    DatasetError
        If a table cannot be read or written.
    """
    destination.require_writable()
    _require_place(destination)
    _require_apart(source, destination)
    manifest, text = read_manifest(source)
    if not allow_public:
        require_private(destination)
    patients = read_table(source, manifest, "patients", ["patient_id"]).column(0).to_pylist()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        copier = _Copier(source, destination, pool, reverify)
        copier.prepare(overwrite)
        files = copier.files(StoreObject(f) for f in SIDE_FILES if source.exists(f))
        stores = []
        for patient_id in patients:
            stores.append(copier.store(patient_id))
            on_store(stores[-1])
        if all(s.error is None for s in stores):
            known = manifest.table_sha256
            files += copier.files(StoreObject(f, None, known.get(f)) for f in table_files(manifest))
            files += copier.files([_whole(MANIFEST_NAME, text)])
    return CopyReport(tuple(stores), len(files), sum(f.size for f in files))


def _require_place(destination: Location) -> None:
    """Require that a local destination is a folder, or absent, and not a source tree."""
    if not destination.is_local:
        return
    require_folder(destination.local(), f"destination {destination.url}")
    if holds_source(destination.local()):
        raise UsageError(
            f"destination {destination.url} is a LUND-PROBE source tree",
            expected="a folder of its own for the dataset",
            remedy="choose another destination",
        )


def _require_apart(source: Location, destination: Location) -> None:
    """Require that the destination lies outside the source; links on a disk are resolved."""
    if source.is_local and destination.is_local:
        within = destination.local().resolve().is_relative_to(source.local().resolve())
    else:
        start, end = (f"{place.url.rstrip('/')}/" for place in (source, destination))
        within = end.startswith(start) and _server(source) == _server(destination)
    if within:
        raise UsageError(
            f"{destination.url} is {source.url} itself or lies within it",
            expected="a place outside the dataset that is copied",
            remedy="choose another destination",
        )


def _server(location: Location) -> set[tuple[str, str]]:
    """Return the options that name the server: two servers may have buckets of the same name."""
    options = location.public_options
    inner = [o for o in options.values() if isinstance(o, Mapping)]
    return {(k, str(v)) for some in (options, *inner) for k, v in some.items() if k in _SERVER}


def send_store(
    source: Location, destination: Location, patient_id: str, workers: int = 8
) -> CopiedStore:
    """Copy one store from the dataset at `source` and verify it; readers see all of it or nothing.

    Another store of this patient is hidden from readers before any of it changes. Raises
    `DatasetError` if the source cannot be read, `VerificationError` if other bytes arrive.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return _Copier(source, destination, pool, reverify=True).send(patient_id)


@dataclass(frozen=True)
class _Sent:
    """An object that was sent: its name relative to the dataset, size and hashes."""

    name: str
    size: int
    md5: bytes
    sha256: bytes


class _Copier:
    """Copies objects and verifies them, several at a time in the threads of `pool`."""

    def __init__(
        self, source: Location, destination: Location, pool: ThreadPoolExecutor, reverify: bool
    ) -> None:
        self._source = source
        self._destination = destination
        self._pool = pool
        self._reverify = reverify

    def prepare(self, overwrite: bool) -> None:
        """Delete the manifest of another dataset, so that readers find none, or refuse to."""
        there = self._contents(MANIFEST_NAME)
        if there is None and not overwrite:
            self._require_vacant()
        if there is None or there == self._source.read(MANIFEST_NAME):
            return
        if not overwrite:
            raise UsageError(
                f"another dataset, or another version of {self._source.url}",
                where=self._destination.path(MANIFEST_NAME),
                expected="that one or none",
                remedy=(
                    "choose another destination, or replace it with --overwrite (overwrite=True)"
                ),
            )
        self._destination.delete(MANIFEST_NAME)

    def _require_vacant(self) -> None:
        # Side files are copied first: equal ones are those of an interrupted copy.
        held = [
            name
            for name in foreign_files(self._destination)
            if not self._source.exists(name) or self._contents(name) != self._source.read(name)
        ]
        if held:
            raise UsageError(
                f"{self._destination.url} is not a dataset and has "
                f"{', '.join(held)}, which the copy would replace",
                expected="a new or empty folder, or an interrupted copy",
                remedy=(
                    "choose another destination, or replace them with --overwrite (overwrite=True)"
                ),
            )

    def store(self, patient_id: str) -> CopiedStore:
        """Copy one store; the result has the error if that failed."""
        try:
            return self.send(patient_id)
        except (DatasetError, VerificationError) as error:
            return CopiedStore(patient_id, error=str(error))

    def send(self, patient_id: str) -> CopiedStore:
        """Copy one store: data, then metadata, then its root. Each is verified before the next."""
        place = store_path(patient_id)
        metadata, text = read_verified_store(self._source, patient_id)
        objects = store_objects(text, metadata.where)
        there = self._destination.listing(place)
        self._clear(place, text, {o.name: o for o in objects}, there)
        sent = []
        for last in (False, True):
            some = self._send(place, [o for o in objects if o.is_metadata is last], there)
            self._verify(some, self._destination.listing(place) if some else {}, place)
            sent += some
        sent += self.files([_whole(f"{place}/{ROOT}", text)])
        return CopiedStore(patient_id, len(objects) + 1, len(sent), sum(s.size for s in sent))

    def _clear(
        self, place: str, text: bytes, named: Mapping[str, StoreObject], there: dict[str, Entry]
    ) -> None:
        """Delete the objects of another store, so that no reader gets a mixture of both.

        The root is deleted first, then metadata of groups and arrays, which can be opened without
        it, then all objects that the new store lacks. An all-zero volume has no object: an old one
        would be read in its place. `there` is updated.
        """
        if ROOT in there and self._contents(f"{place}/{ROOT}") != text:
            self._delete(place, [ROOT], there)
        if ROOT not in there:
            found = [n for n in there if is_metadata(n) and n in named]
            same = self._pool.map(
                lambda n: self._is_there(self._read(f"{place}/{n}", named[n])[0], there[n]), found
            )
            self._delete(place, [n for n, s in zip(found, same, strict=True) if not s], there)
        others = [n for n in there if n not in named and n != ROOT]
        self._delete(place, [n for n in others if is_metadata(n)], there)
        self._delete(place, [n for n in others if not is_metadata(n)], there)

    def _delete(self, place: str, names: list[str], there: dict[str, Entry]) -> None:
        list(self._pool.map(lambda n: self._destination.delete(f"{place}/{n}"), names))
        for name in names:
            del there[name]

    def files(self, objects: Iterable[StoreObject]) -> list[_Sent]:
        """Copy objects, named relative to the dataset; return those sent, which are verified."""
        sent = []
        for item in objects:
            size = self._destination.size(item.name)
            there = None if size is None else Entry(size, None)
            if (one := self._copy(item.name, item, there)) is not None:
                self._require_arrived(one, self._destination.md5(item.name))
                sent.append(one)
        return sent

    def _send(
        self, place: str, objects: Iterable[StoreObject], there: Mapping[str, Entry]
    ) -> list[_Sent]:
        """Copy the objects of a store; return those sent."""
        stop = threading.Event()

        def copy(item: StoreObject) -> _Sent | None:
            if stop.is_set():
                return None
            return self._copy(f"{place}/{item.name}", item, there.get(item.name))

        futures = [self._pool.submit(copy, item) for item in objects]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            return [sent for f in _failed_first(futures) if (sent := f.result()) is not None]
        finally:
            stop.set()  # after an error or interrupt, objects that wait are not copied
            wait(futures)

    def _verify(self, sent: Iterable[_Sent], listed: Mapping[str, Entry], place: str) -> None:
        """Require that all arrived, by the MD5s of a listing where the server gives them."""

        def verify(one: _Sent) -> None:
            entry = listed.get(one.name.removeprefix(f"{place}/"))
            self._require_arrived(one, entry.md5 if entry else None)

        list(self._pool.map(verify, sent))

    def _copy(self, name: str, item: StoreObject, there: Entry | None) -> _Sent | None:
        """Copy one object; return None if the destination had it."""
        if there is not None and self._has_same_index(name, item, there):
            return None
        sent, data = self._read(name, item)
        if there is not None and self._is_there(sent, there):
            return None
        self._destination.write(name, data)
        return sent

    def _read(self, name: str, item: StoreObject) -> tuple[_Sent, bytes]:
        """Read an object of the source. Raises `DatasetError` if it is damaged."""
        _require_within(self._source, name)
        size = UNKNOWN if item.size is None else item.size
        data = read_verified(
            self._source,
            name,
            lambda: read_object(self._source, name, "an object of the dataset", size),
            lambda data: self._undamaged(name, item, data),
        )
        return _Sent(name, len(data), md5(data), hashlib.sha256(data).digest()), data

    def _is_there(self, wanted: _Sent, there: Entry) -> bool:
        with suppress(DatasetError):  # an object that cannot be read is sent again
            return there.size == wanted.size and self._holds(wanted, there.md5)
        return False

    def _has_same_index(self, name: str, item: StoreObject, there: Entry) -> bool:
        """Return whether the destination has a shard of the same size and with the same index."""
        size = item.size
        if self._reverify or size is None or size <= _SMALL or there.size != size:
            return False
        end = [Range(name, size - _END, size)]
        return self._source.read_ranges(end) == self._destination.read_ranges(end)

    def _undamaged(self, name: str, item: StoreObject, data: bytes) -> bytes:
        finding = item.finding(data)
        if finding is None:
            return data
        store, _, key = name.removeprefix("patients/").partition(".zarr/")
        if key:
            raise StorePlace(self._source.url, store, key).damaged(finding)
        raise DatasetError(
            finding,
            where=self._source.path(name),
            remedy="write it again ({command}), then run this again",
            command=Command("finalise", dataset=self._source.url),
        )

    def _require_arrived(self, sent: _Sent, known: bytes | None) -> None:
        """Require that an object arrived as it was sent; send it once more if not."""
        with suppress(DatasetError):  # it may be unreadable
            if self._holds(sent, known):
                return
        self._destination.write(sent.name, self._source.read(sent.name, sent.size))
        if not self._holds(sent, None):
            raise VerificationError(
                f"the {sent.size} bytes that arrived differ from those sent",
                where=self._destination.path(sent.name),
                expected="the same bytes",
                remedy="run the copy again",
            )

    def _holds(self, wanted: _Sent, known: bytes | None) -> bool:
        """Return whether the destination has these bytes: by its MD5 if known, or read back."""
        if known is not None and known == wanted.md5:
            return True
        there = self._contents(wanted.name)
        return there is not None and hashlib.sha256(there).digest() == wanted.sha256

    def _contents(self, name: str) -> bytes | None:
        try:
            return self._destination.read(name)
        except FileNotFoundError:
            return None


def _whole(name: str, data: bytes) -> StoreObject:
    return StoreObject(name, len(data), sha256_of(data))


def _require_within(source: Location, name: str) -> None:
    """Refuse a file of a local dataset that is a link to a file outside of it.

    A folder may be such a link, as when stores lie on another disk.
    """
    if not source.is_local or not (file := source.local(name)).is_symlink():
        return
    if not file.resolve().is_relative_to(source.local().resolve()):
        raise DatasetError(
            "a link that leads out of the dataset",
            where=source.path(name),
            expected="a file",
            remedy="put the file itself in its place",
        )


def _failed_first(futures: list[Future[_Sent | None]]) -> list[Future[_Sent | None]]:
    """Return the futures, failed ones first, so that the error raised is the cause."""
    return sorted(futures, key=lambda f: not (f.done() and f.exception() is not None))
