"""The dask cluster of a conversion: a local one, or any running one.

Workers of a running cluster may be on any machine, and may join and leave. Each must see the source
and the dataset under the same names as this process, and have the same version of this package.
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
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.conversion.notes.draft import require_usable
from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.version import package_version

if TYPE_CHECKING:  # takes 0.4 s to import: imported where it is needed
    from distributed import Client, LocalCluster

#: Timeout of a connection to a scheduler.
_TIMEOUT_SECONDS = 10.0
#: Workers named in a message.
_NAMED = 5
_PACKAGE = "lundprobe_zarr"


class MisfitError(UsageError):
    """A worker, or the scheduler, that cannot take part in the conversion."""


@dataclass(frozen=True)
class Needs:
    """Requirements of a worker: the version, the source folder, the dataset with a run's lease.

    `folder` is None if no source is read. The lease is an object that was just written. A worker
    that sees it sees the same dataset.
    """

    version: str
    folder: Path | None
    dataset: Location
    lease: str
    scratch: Path | None = None


#: Leases of the runs whose requirements this process meets.
_fits: set[str] = set()


def require_fit(needs: Needs) -> None:
    """Raise `MisfitError` if this worker does not meet the requirements; check once per run."""
    if needs.lease in _fits:
        return
    reason = shortcoming(needs)
    if reason is not None:
        raise _misfits([f"a worker on {socket.gethostname()}: {reason}"])
    _fits.add(needs.lease)


def shortcoming(needs: Needs) -> str | None:
    """Return why this process cannot convert, or None."""
    if package_version() != needs.version:
        return _other_version(package_version(), needs.version)
    if needs.folder is not None and not needs.folder.is_dir():
        return f"sees no folder {needs.folder} of the source"
    try:
        if not needs.dataset.exists(needs.lease):
            return f"does not see what was written to {needs.dataset.path(needs.lease)}"
        require_usable(needs.dataset, needs.scratch)
    except (LundProbeError, OSError) as error:
        return f"cannot use the destination: {error}"
    return None


def _other_version(theirs: str | None, ours: str) -> str:
    has = "no importable lundprobe-zarr" if theirs is None else f"lundprobe-zarr {theirs}"
    return f"has {has}, this process {ours}"


def _misfits(reasons: list[str]) -> MisfitError:
    more = [f"… and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return MisfitError(
        "; ".join([*reasons[:_NAMED], *more]),
        expected=(
            "the same version of lundprobe-zarr on scheduler and workers, and workers that see "
            "source and destination under the same names"
        ),
        remedy="correct or stop these, then run the same command again: converted patients stay",
    )


def require_fitting(client: Client, needs: Needs) -> None:
    """Require that the scheduler and its present workers can convert.

    Raises `MisfitError` with those that cannot, and the reasons.
    """
    versions: Any = client.get_versions(packages=[_PACKAGE])
    theirs = {"the scheduler": versions["scheduler"]} | {
        f"worker {address}": answer for address, answer in versions["workers"].items()
    }
    found = {who: answer["packages"].get(_PACKAGE) for who, answer in theirs.items()}
    other = {who: v for who, v in found.items() if v != needs.version}
    if other:
        raise _misfits([f"{who} {_other_version(v, needs.version)}" for who, v in other.items()])
    reasons = client.run(shortcoming, needs, on_error="return")
    unfit = [f"worker {address} {reason}" for address, reason in reasons.items() if reason]
    if unfit:
        raise _misfits(unfit)


#: Options of glibc's malloc: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX.
_MALLOC = {-1: 1 << 28, -3: 1 << 25, -8: 1}


def keep_memory() -> None:
    """Let this process keep freed memory for reuse; has an effect with glibc only.

    dask configures workers to return freed memory at once. The system must then zero new pages for
    every chunk and slab, which takes 40 % of the time at full size.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in _MALLOC.items() if hasattr(libc, "mallopt") else ():
            libc.mallopt(option, value)


@contextmanager
def run_client(
    scheduler: str | None, workers: int | None, needs: Needs, patients: int
) -> Iterator[Client]:
    """Connect to the cluster of a run: the one at `scheduler`, or a local one of `workers`.

    Raises like `remote_client` and `require_fitting`.
    """
    if scheduler is None:
        with local_client(workers, patients) as client:
            yield client
        return
    with remote_client(scheduler) as client:
        require_fitting(client, needs)
        yield client


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """Connect to the scheduler at `address`.

    Raises `UsageError` if no scheduler answers, `LundProbeError` if the connection is lost later.
    """
    from distributed import CancelledError, Client
    from distributed.comm.core import CommClosedError
    from distributed.utils import silence_logging_cmgr

    # distributed logs a traceback when a connection is lost, which is raised as an error below.
    with silence_logging_cmgr(logging.CRITICAL):
        try:
            asyncio.run(asyncio.wait_for(_greet(address), _TIMEOUT_SECONDS))
            client = Client(address, timeout=_TIMEOUT_SECONDS)
        except (OSError, ValueError, MemoryError) as error:
            raise UsageError(
                f"--scheduler {address}: {_no_answer(error)}",
                expected="the address of a running dask scheduler, e.g. tcp://10.0.0.1:8786",
            ) from error
        try:
            with client:
                yield client
        except (CommClosedError, CancelledError) as error:
            raise LundProbeError(
                f"--scheduler {address}: the connection was lost",
                expected="a scheduler that runs until the end",
                remedy="start it again, then run the same command: converted patients stay",
            ) from error


def _no_answer(error: BaseException) -> str:
    if isinstance(error, MemoryError):  # another server's greeting was read as a length
        return "the server there is no dask scheduler"
    return str(error) or f"no answer of a dask scheduler within {_TIMEOUT_SECONDS:.0f} s"


async def _greet(address: str) -> None:
    """Shake hands with a scheduler. `Client` would wait forever for another kind of server."""
    from distributed.comm.core import connect
    from distributed.security import Security

    comm = await connect(address, **Security().get_connection_args("client"))
    await comm.close()


@contextmanager
def local_client(workers: int | None, patients: int) -> Iterator[Client]:
    """Start a cluster on this machine and connect to it; one worker per core by default."""
    from distributed import Client

    with ExitStack() as stack:
        with _signals_held():
            cluster = stack.enter_context(_local_cluster(workers, patients))
            client = stack.enter_context(Client(cluster))
        yield client


def _local_cluster(workers: int | None, patients: int) -> LocalCluster:
    import dask.config
    from distributed import LocalCluster

    # The output of dask's profiler is not used, and it stops each worker every 10 ms.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        return LocalCluster(
            n_workers=min(workers or _cpus(), patients),
            threads_per_worker=1,  # decoding and encoding hold the GIL in between
            processes=True,
            dashboard_address=None,
            # The dashboard's server starts anyway: on a free port, for this machine only.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            # A worker that ends during a heartbeat logs a traceback as an error. A patient's errors
            # are in the task's result.
            silence_logs=logging.CRITICAL,
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block SIGINT and SIGTERM; threads and processes started within never receive them.

    Ctrl-C sends a signal to every process of a terminal. Each worker would end with a traceback,
    and a partly started cluster cannot be closed. Workers end when this process ends them.
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
    """Start the process that cleans up after killed workers, without its warnings.

    If the first worker started it later, it would unblock the signals.
    """
    quiet = "ignore:resource_tracker:UserWarning"
    sys.warnoptions.append(quiet)  # passed on in the tracker's command line
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
