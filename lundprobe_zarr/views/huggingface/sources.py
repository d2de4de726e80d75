"""Where the voxels of references are: datasets by what a reference says of them.

A reference names its dataset by URL and by those options that say where, such as an endpoint;
never by credentials, which may not be written into files. Those stay with the locations that were
opened in this process, and go along when features or handles are pickled for another.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.patch import PatchReader

#: URL and JSON of the options that say where.
Key = tuple[str, str]

#: Patients whose metadata is kept: some 100 kB each.
_READERS = 64

_known: dict[Key, Location] = {}


def key_of(location: Location) -> Key:
    """What references call a location's dataset."""
    return location.url, json.dumps(location.public_options, sort_keys=True)


def remember(location: Location) -> Key:
    """Have references to this location's dataset read through it, with its credentials.

    What is known of its patients is forgotten: it may have been written anew.
    """
    key = key_of(location)
    _known[key] = location
    _readers.forget()
    return key


def known() -> dict[Key, Location]:
    """All locations remembered, to hand to another process."""
    return dict(_known)


def learn(locations: Mapping[Key, Location]) -> None:
    """Remember what another process knew, unless this one knows better."""
    for key, location in locations.items():
        _known.setdefault(key, location)


def location_of(key: Key) -> Location:
    """The location that references call `key`; opened as the environment allows if it is new."""
    if key not in _known:
        _known[key] = Location(key[0], json.loads(key[1]))
    return _known[key]


class _Readers:
    """Readers of the last patients asked for; each is opened once, by whoever is first."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._opened: OrderedDict[tuple[Key, str], Future[PatchReader]] = OrderedDict()

    def get(self, key: Key, patient_id: str) -> PatchReader:
        if self._process != os.getpid():  # forked: what the parent was opening never ends here
            self.forget()
        name = key, patient_id
        with self._lock:
            is_first = name not in self._opened
            future = self._opened.setdefault(name, Future())
            self._opened.move_to_end(name)
            if len(self._opened) > _READERS:
                self._opened.popitem(last=False)
        if is_first:
            self._open(name, future)
        return future.result()

    def _open(self, name: tuple[Key, str], future: Future[PatchReader]) -> None:
        try:
            future.set_result(PatchReader.open(location_of(name[0]), name[1]))
        except (LundProbeError, OSError) as error:
            future.set_exception(error)
        finally:
            if not future.done():
                future.cancel()
            if future.cancelled() or future.exception() is not None:  # to be tried again
                with self._lock:
                    self._opened.pop(name, None)


_readers = _Readers()


def reader_of(key: Key, patient_id: str) -> PatchReader:
    """Reader of a patient's store; one request the first time. Raises `DamagedStoreError`."""
    return _readers.get(key, patient_id)
