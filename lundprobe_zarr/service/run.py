"""Run the service: its socket, its worker processes, its end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.app import ENVIRONMENT, make_app
from lundprobe_zarr.service.http.protocol import BoundedProtocol
from lundprobe_zarr.service.metrics import SHARED
from lundprobe_zarr.service.settings import KEEP_ALIVE_SECONDS, Settings

#: Connections that wait to be accepted.
_BACKLOG = 2048
#: Connections of one process, resting ones too; what exceeds them gets 503.
_MOST_CONNECTIONS = 2000
#: Seconds that running requests get to end after SIGTERM.
_DRAIN_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one.

    Raises `UsageError` if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"port {port} is taken by another program" if taken else str(error.strerror or error),
            where=f"{host}:{port}",
            expected="a free port" if taken else "an address of this machine",
            remedy="choose another one with --port" if taken else "check --host and --port",
        ) from error
    found.set_inheritable(True)
    return found


def run(
    settings: Settings,
    listening: socket.socket,
    workers: int = 1,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests may then end.

    `ready` is called once everything is open, before the first request is answered. Raises
    `DatasetError` or `UsageError` for what cannot be served, before anything is.
    """
    tls = (settings.certificate, settings.key)
    with listening:
        app = make_app(settings)  # opens everything: an error is said here, an index is made here
        ready()
        if workers == 1:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config(app, tls=tls)).run(sockets=[listening])
            return
        with tempfile.TemporaryDirectory(prefix="lundprobe-metrics-") as figures:
            os.environ |= {ENVIRONMENT: settings.dump(), SHARED: figures}
            shared = config("lundprobe_zarr.service.app:from_environment", workers, tls)
            Multiprocess(shared, [listening]).run()


class _WorkerConfig(uvicorn.Config):
    """Configuration of worker processes, which a signal ends as Python ends, and does not kill.

    uvicorn sends itself the signal again after the last answer. That would kill the process, and
    leave what libraries made for multiprocessing: numcodecs makes a semaphore when a process
    decodes first. Python would warn of each.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A worker is given this by pickle, before uvicorn handles signals.
        self.__dict__.update(state)
        _handle(_end)


def _handle(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _end(*_: object) -> None:
    """End this process; more signals, such as Ctrl-C to a group, do not disturb its end."""
    _handle(signal.SIG_IGN)
    sys.exit()


@contextmanager
def in_background(settings: Settings, listening: socket.socket) -> Iterator[None]:
    """Serve in a thread of this process. Raises like `run`."""
    server = uvicorn.Server(config(make_app(settings)))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def config(
    app: object, workers: int = 1, tls: tuple[str | None, str | None] = (None, None)
) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, or for the name of what makes one.

    `tls` is the files of the certificate and of its key.
    """
    return (uvicorn.Config if workers == 1 else _WorkerConfig)(
        app,  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=workers,
        http=BoundedProtocol,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        limit_concurrency=_MOST_CONNECTIONS,
        ssl_certfile=tls[0],
        ssl_keyfile=tls[1],
    )
