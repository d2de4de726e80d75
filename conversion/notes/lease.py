"""Leases: only one conversion at a time writes a patient or the tables.

Each conversion writes a lease on its patients into the dataset before it starts, and stops if
another one has a lease on them. A bucket has no rename, so two conversions could mix their objects:
there each patient also has a lease while it is uploaded. If several leases are requested at once,
the one with the first name in order is granted. A lease is an object that its owner keeps renewing.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive, named, writer

#: Time between renewals of a lease, and time without renewal after which another machine's lease
#: has expired. The reader measures it, so clocks need not agree. It is longer than a network disk
#: shows old contents, usually up to a minute.
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 90.0
#: Folders of leases in the converter's notes: on all patients of a run, on one patient, on tables.
LEASES = ("runs", "claims", "publishing")
#: States in a lease's object: requested or granted.
_REQUESTED, _GRANTED = "waits", "granted"


@contextmanager
def lease_patients(dataset: Location, patients: Iterable[str]) -> Iterator[str]:
    """Hold a lease on the conversion of these patients; yield the name of its object.

    Conversions of other patients, such as the shares of a job array, may run at the same time.
    Raises `UsageError`, with the owner, if another conversion has a lease on one of the patients.
    """
    folder, mine, wanted = f"{NOTES}/runs", writer(), set(patients)
    contents = {"since": datetime.now(UTC).isoformat(" ", "seconds"), "patients": sorted(wanted)}
    lease = f"{folder}/{mine}"
    with _renewing(dataset, lease, contents) as begin:
        others = {o: _parsed(_read(dataset, o)) for o in _other_leases(dataset, folder, mine)}
        shared = {o: _shared(other, wanted) for o, other in others.items()}
        other = _conflicting(dataset, lease, [o for o in others if shared[o]])
        if other is not None:
            host, process = named(other.rpartition("/")[2])
            raise UsageError(
                f"another conversion is running there, process {process} on "
                f"{host} since {others[other].get('since')}, on {shared[other]} "
                f"of the {len(wanted)} requested patients",
                where=dataset.url,
                expected="one at a time",
                remedy=(
                    "wait for it or stop it, then run the same command again; to "
                    "share the work give each a --part i/N"
                ),
            )
        begin()
        yield lease


def _shared(other: Mapping[str, Any], wanted: set[str]) -> int:
    """Return how many `wanted` patients another lease covers; all, if it lists none."""
    return len(wanted.intersection(other.get("patients", wanted)))


@contextmanager
def lease_upload(dataset: Location, patient_id: str) -> Iterator[None]:
    """Hold a lease on the upload of this patient to the bucket.

    Raises `DatasetError` if another conversion holds it.
    """
    folder, mine = f"{NOTES}/claims/{patient_id}", writer()
    lease = f"{folder}/{mine}"
    with _renewing(dataset, lease, {}) as begin:
        other = _conflicting(dataset, lease, _other_leases(dataset, folder, mine))
        if other is not None:
            raise DatasetError(
                "another conversion is uploading this patient",
                where=dataset.path(other),
                expected="one at a time",
                remedy="run again when it has finished",
            )
        begin()
        yield


@contextmanager
def lease_tables(dataset: Location) -> Iterator[None]:
    """Hold a lease on writing the dataset's tables; wait while another conversion holds it."""
    folder, mine = f"{NOTES}/publishing", writer()
    lease = f"{folder}/{mine}"
    while True:
        with _renewing(dataset, lease, {}) as begin:
            other = _conflicting(dataset, lease, _other_leases(dataset, folder, mine))
            if other is None:
                begin()
                yield
                return
        time.sleep(_beat_seconds(dataset))


def _other_leases(dataset: Location, folder: str, mine: str) -> list[str]:
    """Return the leases of others; a name with a leading dot is an unfinished file."""
    names = dataset.children(folder)
    return [f"{folder}/{name}" for name in names if name != mine and not name.startswith(".")]


def _beat_seconds(dataset: Location) -> float:
    """Return the time between renewals; shorter on a disk, where writing is cheap."""
    return _BEAT_SECONDS / 5 if dataset.is_local else _BEAT_SECONDS


@contextmanager
def _renewing(
    dataset: Location, lease: str, contents: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """Request a lease and keep renewing it; calling the yielded function marks it as granted.

    Another conversion either lists the leases after this one was written, and sees it, or before,
    and is then seen as granted. So two conversions never start at once.
    """
    ended, writing, state = threading.Event(), threading.Lock(), [_REQUESTED]

    def write() -> None:
        with writing:
            current = {**contents, "state": state[0], "beat": uuid.uuid4().hex}
            dataset.write(lease, json.dumps(current).encode())

    def beat() -> None:
        while not ended.wait(_beat_seconds(dataset)):
            with suppress(DatasetError):  # the next renewal may succeed
                write()

    def begin() -> None:
        state[0] = _GRANTED
        write()

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield begin
    finally:
        ended.set()
        thread.join()
        with suppress(DatasetError):  # if it stays, it expires
            dataset.delete(lease)


def _conflicting(dataset: Location, mine: str, leases: Iterable[str]) -> str | None:
    """Return one of `leases` that excludes `mine`; None when all others are gone.

    Such a lease is being renewed, and is granted or precedes `mine` by name. Expired leases are
    removed.
    """
    watched = {lease: (_read(dataset, lease), time.monotonic()) for lease in leases}
    while watched:
        for lease, (last, since) in list(watched.items()):
            now = _read(dataset, lease)
            if now is None:
                del watched[lease]
            elif is_alive(lease.rpartition("/")[2]) is False or (
                now == last and time.monotonic() - since > _DEAD_SECONDS
            ):
                dataset.delete(lease)
                del watched[lease]
            elif now != last:
                if lease < mine or _parsed(now).get("state") != _REQUESTED:
                    return lease
                watched[lease] = now, time.monotonic()
        if watched:
            time.sleep(min(_beat_seconds(dataset), _DEAD_SECONDS) / 5)
    return None


def _parsed(contents: bytes | None) -> Mapping[str, Any]:
    try:
        parsed = json.loads(contents or b"")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _read(dataset: Location, lease: str) -> bytes | None:
    try:
        return dataset.read(lease)
    except FileNotFoundError:
        return None
