"""Locations of the datasets that references name.

A reference names its dataset by URL and options such as an endpoint, never by credentials, which
must not be written to files. Credentials stay with the locations opened in this process, and are
pickled with features and handles for other processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader

#: URL, and JSON of the options that are part of the location.
Key = tuple[str, str]

_known: dict[Key, Location] = {}


def key_of(location: Location) -> Key:
    """Return the key of a location's dataset in references."""
    return location.url, json.dumps(location.public_options, sort_keys=True)


def remember(location: Location) -> Key:
    """Use this location, with its credentials, for references to its dataset.

    Drop cached readers, as the dataset may have been rewritten.
    """
    key = key_of(location)
    _known[key] = location
    _readers.forget()
    return key


def known() -> dict[Key, Location]:
    """Return all known locations, for another process."""
    return dict(_known)


def learn(locations: Mapping[Key, Location]) -> None:
    """Add the locations of another process, without replacing known ones."""
    for key, location in locations.items():
        _known.setdefault(key, location)


def location_of(key: Key) -> Location:
    """Return the location of `key`; open a new one with credentials of the environment."""
    if key not in _known:
        _known[key] = Location(key[0], json.loads(key[1]))
    return _known[key]


def _open(name: tuple[Key, str]) -> StoreReader:
    key, patient_id = name
    return StoreReader.open(location_of(key), patient_id)


_readers = Readers(_open)


def reader_of(key: Key, patient_id: str) -> StoreReader:
    """Return the reader of a patient's store; one request the first time.

    Raise `DamagedStoreError` for damaged metadata.
    """
    return _readers.get((key, patient_id))


def forget_reader(key: Key, patient_id: str) -> None:
    """Reopen a patient's store the next time, as it may have changed."""
    _readers.drop((key, patient_id))
