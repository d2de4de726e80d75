"""Who writes what: claims on patients.

Two conversions of one patient at a time would be in each other's way. Each therefore announces its
patients in the dataset before it begins, and gives way to one that has. In a bucket, which has no
rename, they could even mix their objects: there each patient is claimed once more as it is sent.
Of those that claim at once, the one whose name comes first goes on.
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

#: A claim is written anew this often, and that of a conversion elsewhere that has not been for so
#: long is taken for one that was killed. Clocks do not matter: it is watched meanwhile. Longer
#: than a network's disk may show what was there before, a minute as a rule.
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 90.0
#: Folders of claims, within the converter's notes: on all patients of a run, on one, on the tables.
CLAIMS = ("runs", "claims", "publishing")
#: What a claim says: whether its conversion goes on already, or looks for others yet.
_WAITS, _GOES_ON = "waits", "goes on"


@contextmanager
def announced(dataset: Location, patients: Iterable[str]) -> Iterator[str]:
    """Within, no other conversion of any of these patients into the dataset begins.

    Gives the name of the object there that says so.

    Those of other patients, such as the shares of a job array, may run beside it. Raises
    `UsageError` that says who is at work. Of several that begin at once one goes on.
    """
    folder, mine, wanted = f"{NOTES}/runs", writer(), set(patients)
    said = {"since": datetime.now(UTC).isoformat(" ", "seconds"), "patients": sorted(wanted)}
    claim = f"{folder}/{mine}"
    with _beating(dataset, claim, said) as begin:
        others = {c: _parsed(_read(dataset, c)) for c in _claims(dataset, folder, mine)}
        shared = {c: _shared(other, wanted) for c, other in others.items()}
        other = _in_the_way(dataset, claim, [c for c in others if shared[c]])
        if other is not None:
            host, process = named(other.rpartition("/")[2])
            raise UsageError(
                f"another conversion is at work there, process {process} on "
                f"{host} since {others[other].get('since')}, on {shared[other]} "
                f"of the {len(wanted)} patients asked for",
                where=dataset.url,
                expected="one at a time",
                remedy=(
                    "wait for it or stop it, then run the same command again; to "
                    "share the work give each a --part i/N"
                ),
            )
        begin()
        yield claim


def _shared(other: Mapping[str, Any], wanted: set[str]) -> int:
    """How many patients another conversion is at work on too; all, if it does not say."""
    return len(wanted.intersection(other.get("patients", wanted)))


@contextmanager
def claimed(dataset: Location, patient_id: str) -> Iterator[None]:
    """Within, no other conversion sends this patient to the bucket.

    Raises `DatasetError` if another does. Of several that begin at once one goes on.
    """
    folder, mine = f"{NOTES}/claims/{patient_id}", writer()
    claim = f"{folder}/{mine}"
    with _beating(dataset, claim, {}) as begin:
        other = _in_the_way(dataset, claim, _claims(dataset, folder, mine))
        if other is not None:
            raise DatasetError(
                "another conversion is sending this patient just now",
                where=dataset.path(other),
                expected="one at a time",
                remedy="run again once it is done",
            )
        begin()
        yield


@contextmanager
def publishing(dataset: Location) -> Iterator[None]:
    """Within, no other conversion writes the tables of the dataset; waits for one that does."""
    folder, mine = f"{NOTES}/publishing", writer()
    claim = f"{folder}/{mine}"
    while True:
        with _beating(dataset, claim, {}) as begin:
            other = _in_the_way(dataset, claim, _claims(dataset, folder, mine))
            if other is None:
                begin()
                yield
                return
        time.sleep(_beat_seconds(dataset))


def _claims(dataset: Location, folder: str, mine: str) -> list[str]:
    """Claims of others; a name with a dot is a file that is being written."""
    names = dataset.children(folder)
    return [f"{folder}/{name}" for name in names if name != mine and not name.startswith(".")]


def _beat_seconds(dataset: Location) -> float:
    """Writing to a disk costs nothing, so that who waits to see a claim renewed waits less."""
    return _BEAT_SECONDS / 5 if dataset.is_local else _BEAT_SECONDS


@contextmanager
def _beating(
    dataset: Location, claim: str, said: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """A claim written again and again, which says that it waits until what is given is called.

    Whoever lists the claims after this one was written sees it; whoever did so before says soon
    that it goes on. So none begins while another does.
    """
    ended, writing, state = threading.Event(), threading.Lock(), [_WAITS]

    def write() -> None:
        with writing:
            says = {**said, "state": state[0], "beat": uuid.uuid4().hex}
            dataset.write(claim, json.dumps(says).encode())

    def beat() -> None:
        while not ended.wait(_beat_seconds(dataset)):
            with suppress(DatasetError):  # the next may get through
                write()

    def begin() -> None:
        state[0] = _GOES_ON
        write()

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield begin
    finally:
        ended.set()
        thread.join()
        with suppress(DatasetError):  # if it stays, it is that of the dead
            dataset.delete(claim)


def _in_the_way(dataset: Location, mine: str, claims: Iterable[str]) -> str | None:
    """The one of `claims` to give way to, if any; returns once all others are gone.

    It is renewed, and goes on or comes before `mine`. Those of the dead are removed.
    """
    watched = {claim: (_read(dataset, claim), time.monotonic()) for claim in claims}
    while watched:
        for claim, (last, since) in list(watched.items()):
            now = _read(dataset, claim)
            if now is None:
                del watched[claim]
            elif is_alive(claim.rpartition("/")[2]) is False or (
                now == last and time.monotonic() - since > _DEAD_SECONDS
            ):
                dataset.delete(claim)
                del watched[claim]
            elif now != last:
                if claim < mine or _parsed(now).get("state") != _WAITS:
                    return claim
                watched[claim] = now, time.monotonic()
        if watched:
            time.sleep(min(_beat_seconds(dataset), _DEAD_SECONDS) / 5)
    return None


def _parsed(said: bytes | None) -> Mapping[str, Any]:
    try:
        parsed = json.loads(said or b"")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _read(dataset: Location, claim: str) -> bytes | None:
    try:
        return dataset.read(claim)
    except FileNotFoundError:
        return None
