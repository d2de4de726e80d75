"""Who writes what: names that tell the living from the dead, and claims on patients in a bucket.

A bucket has no rename, so two conversions of one patient at a time could mix their objects. Each
therefore writes a claim before it touches the store, and leaves alone what another claims. Of those
that claim at once, the one whose name comes first goes on.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.store.location import Location

#: Folder of a dataset for what the converter remembers; readers do not need it.
NOTES = ".conversion"
#: A claim is written anew this often, and that of a conversion elsewhere that has not been for so
#: long is taken for one that was killed. Clocks do not matter: it is watched meanwhile.
_BEAT_SECONDS = 10.0
_DEAD_SECONDS = 60.0
#: How a claim begins: whether its conversion sends already, or looks for others yet.
_WAITS, _SENDS = b"waits ", b"sends "


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

    Raises `DatasetError` if another does. Of several that begin at once one goes on.
    """
    folder, mine = f"{NOTES}/claims/{patient_id}", writer()
    with _beating(dataset, f"{folder}/{mine}") as begin:
        for other in dataset.children(folder):
            if other != mine:
                _await_end(dataset, f"{folder}/{other}", gives_way=other > mine)
        begin()
        yield


@contextmanager
def _beating(dataset: Location, claim: str) -> Iterator[Callable[[], None]]:
    """A claim written again and again, which says that it waits until what is given is called.

    Whoever lists the claims after this one was written sees it; whoever did so before says soon
    that it sends. So none begins while another does.
    """
    ended, writing, state = threading.Event(), threading.Lock(), [_WAITS]

    def write() -> None:
        with writing:
            dataset.write(claim, state[0] + uuid.uuid4().bytes)

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with suppress(DatasetError):  # the next may get through
                write()

    def begin() -> None:
        state[0] = _SENDS
        write()

    write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield begin
    finally:
        ended.set()
        thread.join()
        dataset.delete(claim)


def _await_end(dataset: Location, claim: str, gives_way: bool) -> None:
    """Return once another's claim is gone; that of a conversion that was killed is removed.

    Raises `DatasetError` if it lives and sends, or waits and is not the one that `gives_way`.
    """
    if is_alive(claim.rpartition("/")[2]) is not False:
        last, until = _read(dataset, claim), time.monotonic() + _DEAD_SECONDS
        while (now := _read(dataset, claim)) is not None and time.monotonic() < until:
            if now != last:
                _require_waiting(dataset, claim, gives_way and now.startswith(_WAITS))
                last, until = now, time.monotonic() + _DEAD_SECONDS
            time.sleep(min(_BEAT_SECONDS, _DEAD_SECONDS) / 5)
    dataset.delete(claim)


def _require_waiting(dataset: Location, claim: str, waiting: bool) -> None:
    if not waiting:
        raise DatasetError(
            f"{dataset.path(claim)}: another conversion is sending this patient just now; "
            "expected one at a time; run again once it is done"
        )


def _read(dataset: Location, claim: str) -> bytes | None:
    try:
        return dataset.read(claim)
    except FileNotFoundError:
        return None
