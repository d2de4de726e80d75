"""The dask cluster that does the work: one of this machine's own, or any that runs already.

Workers of a running one may be on any machine, and come and go. Each must see the source and the
dataset under the same names as this process, and have the same version of this package.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from distributed import CancelledError, Client, LocalCluster
from distributed.comm.core import CommClosedError, connect
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from lundprobe_zarr.conversion.notes.draft import require_usable
from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.version import package_version

#: A scheduler that runs answers within this time.
_PATIENCE_SECONDS = 10.0
#: Workers named in a message.
_NAMED = 5
_PACKAGE = "lundprobe_zarr"


class MisfitError(UsageError):
    """A worker, or the scheduler, that cannot take part in the conversion."""


@dataclass(frozen=True)
class Needs:
    """What a worker needs: this version, a folder of the source, the dataset with a run's claim.

    The claim is an object that was just written there, so that who sees it sees the same place.
    """

    version: str
    folder: Path
    dataset: Location
    claim: str
    scratch: Path | None = None


#: Claims of the runs that this process fits.
_fits: set[str] = set()


def require_fit(needs: Needs) -> None:
    """Require of this worker, once a run, that it can do its work; raises `MisfitError`."""
    if needs.claim in _fits:
        return
    reason = shortcoming(needs)
    if reason is not None:
        raise _misfits([f"a worker on {socket.gethostname()}: {reason}"])
    _fits.add(needs.claim)


def shortcoming(needs: Needs) -> str | None:
    """Why this process cannot convert, if it cannot."""
    if package_version() != needs.version:
        return _other_version(package_version(), needs.version)
    if not needs.folder.is_dir():
        return f"sees no folder {needs.folder} of the source"
    try:
        if not needs.dataset.exists(needs.claim):
            return f"does not see what was written to {needs.dataset.path(needs.claim)}"
        require_usable(needs.dataset, needs.scratch)
    except (LundProbeError, OSError) as error:
        return f"cannot use the destination: {error}"
    return None


def _other_version(theirs: str | None, ours: str) -> str:
    has = "no lundprobe-zarr that can be imported" if theirs is None else f"lundprobe-zarr {theirs}"
    return f"has {has}, this process {ours}"


def _misfits(said: list[str]) -> MisfitError:
    more = [f"… and {len(said) - _NAMED} more"] if len(said) > _NAMED else []
    return MisfitError(
        "; ".join([*said[:_NAMED], *more]),
        expected=(
            "of scheduler and workers the same version of lundprobe-zarr, and of workers that they "
            "see source and destination under the same names"
        ),
        remedy=(
            "mend or stop those named, then run the same command again: what is converted stays"
        ),
    )


def require_fitting(client: Client, needs: Needs) -> None:
    """Require that scheduler and workers, as far as they are there, can take part.

    Raises `MisfitError` that names those that cannot, and why.
    """
    versions: Any = client.get_versions(packages=[_PACKAGE])
    theirs = {"the scheduler": versions["scheduler"]} | {
        f"worker {address}": said for address, said in versions["workers"].items()
    }
    found = {who: said["packages"].get(_PACKAGE) for who, said in theirs.items()}
    other = {who: v for who, v in found.items() if v != needs.version}
    if other:
        raise _misfits([f"{who} {_other_version(v, needs.version)}" for who, v in other.items()])
    reasons = client.run(shortcoming, needs, on_error="return")
    said = [f"worker {address} {reason}" for address, reason in reasons.items() if reason]
    if said:
        raise _misfits(said)


#: Options of glibc's malloc: how much that is free at the end of its memory it keeps, from what
#: size on a block is a mapping of its own, and that one thread does the work.
_MALLOC = {-1: 1 << 28, -3: 1 << 25, -8: 1}


def keep_memory() -> None:
    """Let this process keep what it freed for what it needs next; elsewhere than on glibc nothing.

    dask starts workers so that every freed block goes back to the system at once, and each chunk
    and slab is fresh pages to be zeroed: at full size that is four tenths of the time.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC.items() if hasattr(libc, "mallopt") else ():
            libc.mallopt(option, value)


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`.

    Raises `UsageError` if none answers there soon, `LundProbeError` if it is lost within.
    """
    # Its library logs a traceback when a connection is lost, which becomes an error of ours.
    with silence_logging_cmgr(logging.CRITICAL):
        try:
            asyncio.run(asyncio.wait_for(_greet(address), _PATIENCE_SECONDS))
            client = Client(address, timeout=_PATIENCE_SECONDS)
        except (OSError, ValueError, MemoryError) as error:
            raise UsageError(
                f"--scheduler {address}: {_silence(error)}",
                expected=("the address of a running dask scheduler, e.g. tcp://10.0.0.1:8786"),
            ) from error
        try:
            with client:
                yield client
        except (CommClosedError, CancelledError) as error:
            raise LundProbeError(
                f"--scheduler {address}: the connection was lost",
                expected="the scheduler to be there to the end",
                remedy=("start it anew, then run the same command again: what is converted stays"),
            ) from error


def _silence(error: BaseException) -> str:
    if isinstance(error, MemoryError):  # its greeting was read as a length
        return "what answers there is no dask scheduler"
    return str(error) or f"no answer of a dask scheduler within {_PATIENCE_SECONDS:.0f} s"


async def _greet(address: str) -> None:
    """Shake hands with a scheduler; `Client` waits for ever for any other server."""
    comm = await connect(address, **Security().get_connection_args("client"))
    await comm.close()


@contextmanager
def local_client(workers: int | None, patients: int) -> Iterator[Client]:
    """A client of a cluster on this machine, which ends with it: a worker a core by default."""
    with ExitStack() as stack:
        with _signals_held():
            cluster = stack.enter_context(_local_cluster(workers, patients))
            client = stack.enter_context(Client(cluster))
        yield client


def _local_cluster(workers: int | None, patients: int) -> LocalCluster:
    return LocalCluster(
        n_workers=min(workers or _cpus(), patients),
        threads_per_worker=1,  # decoding and encoding hold the GIL in between
        processes=True,
        dashboard_address=None,
        # No dashboard, but its server starts anyway: on a free port, for this machine alone.
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        # A worker told to end amid a heartbeat logs a traceback as an error; what fails for a
        # patient comes back as the task's result.
        silence_logs=logging.CRITICAL,
    )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; threads and processes started meanwhile never get them.

    Ctrl-C goes to every process of a terminal: workers that took it would die with a traceback
    each, and a cluster that is half started cannot be closed. They end when this process says.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has neither masks nor process groups
        yield
        return
    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Start the process that frees what killed workers leave, and let it do so without a word.

    Started later, by the first worker, it would let the signals through again.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # handed down as the tracker's command line
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
