"""Open one patient's store by its root metadata, and tell whether it is replaced later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lundprobe_zarr.errors import ChangedStoreError, DamagedStoreError, DatasetError
from lundprobe_zarr.schema.document import sha256_of
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import read_verified
from lundprobe_zarr.stores.metadata import StoreMetadata, parse_store_of
from lundprobe_zarr.stores.place import StorePlace

#: A file as the system knows it: number, time of the last change in ns, size.
_Stamp = tuple[int, int, int]


def open_store(location: Location, patient_id: str) -> StoreMetadata:
    """Metadata of one patient's store; one request. Raises `DamagedStoreError` if it is unsound."""
    return read_verified_store(location, patient_id)[0]


def read_verified_store(location: Location, patient_id: str) -> tuple[StoreMetadata, bytes]:
    """Metadata of one patient's store and its text; raises as `open_store` does."""
    place = store_path(patient_id)
    return read_verified(
        location,
        f"{place}/zarr.json",
        lambda: read_store(location, patient_id)[0],
        lambda text: (parse_store_of(text, StorePlace(location.url, patient_id)), text),
    )


def read_store(location: Location, patient_id: str) -> tuple[bytes, StorePlace]:
    """Read the text of a store's root `zarr.json`, and name the store; one request.

    Raises `DamagedStoreError` if there is no such store.
    """
    place = StorePlace(location.url, patient_id)
    try:
        return location.read(f"{store_path(patient_id)}/zarr.json"), place
    except FileNotFoundError as error:
        raise place.damaged(f"no store of patient {patient_id} there", "one") from error


class Unchanged:
    """Proves that a store is still the one that was opened with `metadata`.

    On a local disk a store is replaced whole, by a rename. As long as its root is the one that was
    opened, all that was read before is of that store; the root's times, looked at after each read,
    prove it in some microseconds. Elsewhere the objects of a store are replaced one by one, the
    root removed first, and each look would be one more request: there the root is read only when
    what was read does not fit the metadata.
    """

    def __init__(self, location: Location, metadata: StoreMetadata) -> None:
        self._location = location
        self._sha256 = metadata.sha256
        self._place = store_path(metadata.patient_id)
        self._root = f"{self._place}/zarr.json"
        self._file = location.local(self._root) if location.is_local else None
        self._proved: _Stamp | None = None

    @contextmanager
    def during(self) -> Iterator[None]:
        """Around a read: raises `ChangedStoreError` if it may be of another store.

        On a local disk, surely; elsewhere where the read itself fails.
        """
        try:
            yield
        except DamagedStoreError:
            self.require_root()  # which would explain it
            raise
        if self._file is not None:
            now = self._stamp(self._file)
            if now != self._proved:
                self.require_root()
                self._proved = now

    def _stamp(self, file: Path) -> _Stamp:
        try:
            status = file.stat()
        except FileNotFoundError:
            raise self._gone() from None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def require_root(self) -> None:
        """Read the root and compare it; raises `ChangedStoreError` if it is another, or gone."""
        try:
            # Not as a cache may have kept it.
            text = Location.read(self._location, self._root)
        except FileNotFoundError:
            raise self._gone() from None
        except DatasetError:  # it is not known
            return
        if sha256_of(text) != self._sha256:
            raise self._error("another one has taken its place")

    def _gone(self) -> ChangedStoreError:
        return self._error("gone, or just being replaced")

    def _error(self, finding: str) -> ChangedStoreError:
        return ChangedStoreError(
            f"{finding} since this store was opened",
            where=self._location.path(self._place),
            expected="the same as long as it is read",
            remedy="open the dataset again, once no conversion replaces its patients",
        )
