"""A real server on loopback, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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
from lundprobe_zarr.service.access import new_token, token_sha256
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


@pytest.fixture(scope="session")
def start_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Served]]:
    """A function that starts a service of `{name: path}`, with further settings by name."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(datasets: dict[str, str | Path], **settings: Any) -> Served:
        folder = tmp_path_factory.mktemp("service")
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
        server = uvicorn.Server(config(app))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        running.append((server, thread))
        return Served(url, token, folder / "audit.jsonl", app)

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join(20)


@pytest.fixture(scope="session")
def served(start_service: Callable[..., Served], dataset: Path) -> Served:
    """A service of the phantom, with one token. Nothing may change it."""
    return start_service({NAME: dataset})


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
