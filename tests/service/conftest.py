"""A real server on loopback, in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from oblique import write_oblique

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.service.access.callers import new_token, token_sha256
from lundprobe_zarr.service.app import make_app
from lundprobe_zarr.service.run import config, listen
from lundprobe_zarr.service.settings import Settings

NAME = "lund-probe/standard"


@dataclass
class Served:
    """A running service: its URL, a token that opens everything, and its audit log."""

    url: str
    token: str
    audit: Path
    app: Any
    name: str = NAME

    @property
    def headers(self) -> dict[str, str]:
        """The header of a request with the token."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def client(self) -> httpx.Client:
        """An HTTP client with the token."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=30)


Start = Callable[..., Served]


@contextmanager
def _services(folders: pytest.TempPathFactory) -> Iterator[Start]:
    """Give a function that starts a service; all that it started end with the block."""
    with ExitStack() as running:

        def start(datasets: dict[str, str | Path], **settings: Any) -> Served:
            folder = folders.mktemp("service")
            token = new_token()
            listening = listen("127.0.0.1", 0)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            chosen = Settings(
                datasets={name: str(path) for name, path in datasets.items()},
                state=str(folder / "state"),
                public_url=url,
                audit=str(folder / "audit.jsonl"),
                token_sha256=token_sha256(token),
            )
            app = make_app(replace(chosen, **settings))
            running.enter_context(_running(uvicorn.Server(config(app)), listening))
            return Served(url, token, folder / "audit.jsonl", app)

        yield start


@contextmanager
def _running(server: uvicorn.Server, listening: socket.socket) -> Iterator[None]:
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.002)
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """A function that starts a service of `{name: path}`, with further settings by name.

    It ends with the test.
    """
    with _services(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """As `start_service`; it ends with the tests of a module."""
    with _services(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Iterator[Served]:
    """A service of the phantom, with one token. Nothing may change it."""
    with _services(tmp_path_factory) as start:
        yield start({NAME: dataset})


@pytest.fixture(scope="session")
def oblique_source(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree of one extended patient, whose grids lie askew."""
    return write_oblique(phantom_source, tmp_path_factory.mktemp("askew") / "source")


@pytest.fixture(scope="session")
def oblique_dataset(oblique_source: Path) -> Path:
    """The patient of `oblique_source`, converted."""
    folder = oblique_source.with_name("dataset")
    for patient in take_inventory(oblique_source).patients:
        result = convert_patient(patient, folder, "standard")
        assert result.status == "converted", result.error
    finalise(folder)
    return folder
