"""Run the service: its socket, its worker processes, its end."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from uvicorn.supervisors import Multiprocess

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.app import ENVIRONMENT, make_app
from lundprobe_zarr.service.protocol import BoundedProtocol
from lundprobe_zarr.service.settings import KEEP_ALIVE_SECONDS, Settings

#: Connections that wait to be accepted.
_BACKLOG = 2048
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


def run(settings: Settings, listening: socket.socket, workers: int = 1) -> None:
    """Serve until SIGTERM or Ctrl-C; running requests may then end.

    Raises `DatasetError` or `UsageError` for what cannot be served, before anything is.
    """
    app = make_app(settings)  # opens everything once: an error is said here, an index is made here
    if workers == 1:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config(app)).run(sockets=[listening])
        return
    os.environ[ENVIRONMENT] = settings.dump()
    shared = config("lundprobe_zarr.service.app:from_environment", workers)
    Multiprocess(shared, [listening]).run()


@contextmanager
def in_background(settings: Settings, listening: socket.socket) -> Iterator[None]:
    """Serve in a thread of this process meanwhile. Raises like `run`."""
    server = uvicorn.Server(config(make_app(settings)))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def config(app: object, workers: int = 1) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, or for the name of what makes one."""
    return uvicorn.Config(
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
    )
