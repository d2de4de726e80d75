"""Who writes what: names that tell the living from the dead, and claims on patients.

Two conversions of one patient at a time would be in each other's way. Each therefore announces its
patients in the dataset before it begins, and gives way to one that has. In a bucket, which has no
rename, they could even mix their objects: there each patient is claimed once more as it is sent.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.memory import NOTES

#: A claim is written anew this often, and that of a conversion elsewhere that has not been for so
#: long is taken for one that was killed. Clocks do not matter: it is watched meanwhile. Longer
#: than a network's disk may show what was there before, a minute as a rule.
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 90.0


def writer() -> str:
    """A name for what this process writes: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_alive(name: str) -> bool | None:
    """Whether the process is alive that `writer` named; None if that cannot be told here."""
    host, process = _named(name)
    if host != socket.gethostname() or not process.isdigit():
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def announced(dataset: Location, patients: Iterable[str]) -> Iterator[None]:
    """Within, no other conversion of any of these patients into the dataset begins.

    Those of other patients, such as the shares of a job array, may run beside it. Raises
    `UsageError` that says who is at work. Of two that begin at once both may give way.
    """
    folder, mine, wanted = f"{NOTES}/runs", writer(), set(patients)
    said = {"since": datetime.now(UTC).isoformat(" ", "seconds"), "patients": sorted(wanted)}
    with _beating(dataset, f"{folder}/{mine}", said):
        others = {c: _parsed(_read(dataset, c)) for c in _claims(dataset, folder, mine)}
        shared = {c: _shared(other, wanted) for c, other in others.items()}
        for claim in _living(dataset, [c for c in others if shared[c]]):
            host, process = _named(claim)
            raise UsageError(
                f"{dataset.url}: another conversion is at work there, process {process} on {host} "
                f"since {others[claim].get('since')}, on {shared[claim]} of the "
                f"{len(wanted)} patients asked for; expected one at a time; wait for it or stop "
                "it, then run the same command again; to share the work give each a --part i/N"
            )
        yield


def _shared(other: Mapping[str, Any], wanted: set[str]) -> int:
    """How many patients another conversion is at work on too; all, if it does not say."""
    return len(wanted.intersection(other.get("patients", wanted)))


@contextmanager
def claimed(dataset: Location, patient_id: str) -> Iterator[None]:
    """Within, no other conversion sends this patient to the bucket.

    Raises `DatasetError` if another does. Of two that begin at once both may give way.
    """
    folder, mine = f"{NOTES}/claims/{patient_id}", writer()
    with _beating(dataset, f"{folder}/{mine}", {}):
        for claim in _living(dataset, _claims(dataset, folder, mine)):
            raise DatasetError(
                f"{dataset.path(claim)}: another conversion is sending this patient just now; "
                "expected one at a time; run again once it is done"
            )
        yield


def _claims(dataset: Location, folder: str, mine: str) -> list[str]:
    """Claims of others; a name with a dot is a file that is being written."""
    names = dataset.children(folder)
    return [f"{folder}/{name}" for name in names if name != mine and not name.startswith(".")]


def _beat_seconds(dataset: Location) -> float:
    """Writing to a disk costs nothing, so that who waits to see a claim renewed waits less."""
    return _BEAT_SECONDS / 5 if dataset.is_local else _BEAT_SECONDS


@contextmanager
def _beating(dataset: Location, claim: str, said: Mapping[str, Any]) -> Iterator[None]:
    ended = threading.Event()

    def write() -> None:
        dataset.write(claim, json.dumps({**said, "beat": uuid.uuid4().hex}).encode())

    def beat() -> None:
        while not ended.wait(_beat_seconds(dataset)):
            with suppress(DatasetError):  # the next may get through
                write()

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        dataset.delete(claim)


def _living(dataset: Location, claims: Iterable[str]) -> list[str]:
    """Those of `claims` that are renewed; if none is, all are of the dead and are removed."""
    dead, watched = [], {}
    for claim in claims:
        if is_alive(claim.rpartition("/")[2]) is False:
            dead.append(claim)
        else:
            watched[claim] = _read(dataset, claim)
    until = time.monotonic() + _DEAD_SECONDS
    while watched:
        now = {claim: _read(dataset, claim) for claim in watched}
        renewed = [c for c in watched if now[c] is not None and now[c] != watched[c]]
        if renewed:
            return renewed
        watched = {c: said for c, said in watched.items() if now[c] is not None}
        if time.monotonic() >= until:
            break
        time.sleep(min(_beat_seconds(dataset), _DEAD_SECONDS) / 5)
    for claim in (*dead, *watched):
        dataset.delete(claim)
    return []


def _parsed(said: bytes | None) -> Mapping[str, Any]:
    try:
        parsed = json.loads(said or b"")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _named(claim: str) -> tuple[str, str]:
    """Host and process of the writer of a claim."""
    host, _, process = claim.rpartition("/")[2].rpartition("-")[0].rpartition("-")
    return host, process


def _read(dataset: Location, claim: str) -> bytes | None:
    try:
        return dataset.read(claim)
    except FileNotFoundError:
        return None
