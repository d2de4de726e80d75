"""Where the voxels of references are: datasets by what a reference says of them.

A reference names its dataset by URL and by those options that say where, such as an endpoint;
never by credentials, which may not be written into files. Those stay with the locations that were
opened in this process, and go along when features or handles are pickled for another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader

#: URL and JSON of the options that say where.
Key = tuple[str, str]

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


def _open(name: tuple[Key, str]) -> StoreReader:
    key, patient_id = name
    return StoreReader.open(location_of(key), patient_id)


_readers = Readers(_open)


def reader_of(key: Key, patient_id: str) -> StoreReader:
    """Reader of a patient's store; one request the first time. Raises `DamagedStoreError`."""
    return _readers.get((key, patient_id))


def forget_reader(key: Key, patient_id: str) -> None:
    """Open a patient's store anew the next time: it may have changed."""
    _readers.drop((key, patient_id))
