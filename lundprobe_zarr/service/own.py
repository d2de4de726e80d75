"""A service for oneself, on this machine: of `lundprobe-zarr view`, and of a notebook."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lundprobe_zarr.service.access.callers import new_token, token_sha256
from lundprobe_zarr.service.entry import ENTRY_OPTION, ENTRY_PATH, new_code
from lundprobe_zarr.service.run import listen
from lundprobe_zarr.service.settings import Settings, usual_state

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class OwnService:
    """What to start for oneself: settings with a token that is not shown, and a socket.

    Attributes
    ----------
    settings : Settings
        The settings.
    listening : socket
        The listening socket, on loopback.
    key : str
        What codes are made of, for links.
    """

    settings: Settings
    listening: socket.socket
    key: str

    @classmethod
    def of(
        cls,
        datasets: Mapping[str, str],
        storage_options: Mapping[str, Any],
        options: Mapping[str, Any],
        port: int = 0,
    ) -> OwnService:
        """Return what to start; the parameters are those of `Settings` and `listen`.

        Raises `UsageError` if the port is taken.
        """
        token, key = new_token(), secrets.token_hex(32)
        listening = listen(_HOST, port)
        listening.set_inheritable(False)
        settings = Settings(
            datasets=datasets,
            state=str(usual_state()),
            public_url=f"http://{_HOST}:{listening.getsockname()[1]}",
            storage_options=storage_options,
            token_sha256=token_sha256(token),
            options={ENTRY_OPTION: {"key": key, "token": token}, **options},
        )
        return cls(settings, listening, key)

    @property
    def port(self) -> int:
        """The port of the service."""
        return int(self.listening.getsockname()[1])

    def link(self, base: str | None = None) -> str:
        """Return a link that opens the page once; `base` is the URL of the service elsewhere."""
        return f"{base or self.settings.public_url}{ENTRY_PATH}?code={new_code(self.key)}"
