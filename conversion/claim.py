"""Who writes what: names that tell the living from the dead, and claims on patients in a bucket.

A bucket has no rename, so two conversions of one patient at a time could mix their objects. Each
therefore writes a claim before it touches the store, and leaves alone what another claims.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.store.location import Location

#: Folder of a dataset for what the converter remembers; readers do not need it.
NOTES = ".conversion"
#: A claim is written anew this often, and that of a conversion elsewhere that has not been for so
#: long is taken for one that was killed. Clocks do not matter: it is watched meanwhile.
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 60.0


def writer() -> str:
    """A name for what this process writes: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_alive(name: str) -> bool | None:
    """Whether the process is alive that `writer` named; None if that cannot be told here."""
    host, _, rest = name.rpartition("-")[0].rpartition("-")
    if host != socket.gethostname() or not rest.isdigit():
        return None
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def claimed(dataset: Location, patient_id: str) -> Iterator[None]:
    """Within, no other conversion sends this patient to the bucket.

    Raises `DatasetError` if another does. Of two that begin at once both may give way.
    """
    folder, mine = f"{NOTES}/claims/{patient_id}", writer()
    with _beating(dataset, f"{folder}/{mine}"):
        for other in dataset.children(folder):
            if other != mine:
                _require_dead(dataset, f"{folder}/{other}")
        yield


@contextmanager
def _beating(dataset: Location, claim: str) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with suppress(DatasetError):  # the next may get through
                dataset.write(claim, uuid.uuid4().bytes)

    dataset.write(claim, uuid.uuid4().bytes)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        dataset.delete(claim)


def _require_dead(dataset: Location, claim: str) -> None:
    """Remove the claim of a conversion that was killed; raise `DatasetError` if it lives."""
    if is_alive(claim.rpartition("/")[2]) is not False:
        first = _read(dataset, claim)
        until = time.monotonic() + _DEAD_SECONDS
        while (now := _read(dataset, claim)) == first and time.monotonic() < until:
            time.sleep(min(_BEAT_SECONDS, _DEAD_SECONDS) / 5)
        if now is not None and now != first:
            raise DatasetError(
                f"{dataset.path(claim)}: another conversion is sending this patient just now; "
                "expected one at a time; run again once it is done"
            )
    dataset.delete(claim)


def _read(dataset: Location, claim: str) -> bytes | None:
    try:
        return dataset.read(claim)
    except FileNotFoundError:
        return None
