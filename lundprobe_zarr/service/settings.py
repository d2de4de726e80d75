"""What a service is started with."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Seconds that a connection may rest between requests: training pauses for validation.
KEEP_ALIVE_SECONDS = 75
DEFAULT_PORT = 8000


@dataclass(frozen=True)
class Settings:
    """What a service is started with; made by the command line, handed to every worker process.

    Attributes
    ----------
    datasets : mapping of str to str
        Path or URL of each dataset, by its name `owner/name`.
    storage_options : mapping
        Options of fsspec for all of them. May hold credentials.
    state : str
        Folder of this service's own files: indexes, counters. Never within a dataset.
    public_url : str
        URL under which clients reach the service, without a trailing slash. Links are made of it,
        never of a request's `Host`.
    access : str or None
        The access file.
    audit : str or None
        The audit log.
    public : bool
        Whether everyone may have everything without a token.
    synthetic_only : bool
        Whether datasets of real patients are refused, also one that replaces another later.
    token_sha256 : str or None
        SHA-256 (hex) of the one token of a service without access file.
    redirect : bool
        Whether bytes in a bucket are given by a redirect to a signed URL.
    accel : str or None
        Path of nginx's internal location that gives the files of local datasets.
    options : mapping
        Further settings of single rooms of the service.
    oidc : str or None
        The file that says how people sign in.
    trusted_proxies : sequence of str
        Addresses and networks of reverse proxies whose statements count.
    only_proxies : bool
        Whether requests that come past these proxies are refused: they would be without TLS.
    certificate, key : str or None
        Files of the TLS certificate, with its chain, and of its key.
    access_log : str
        What is printed of a request: "color", "json" or "none".
    log_level : int
        Level of `logging` that worker processes log from.
    """

    datasets: Mapping[str, str]
    state: str
    public_url: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    access: str | None = None
    audit: str | None = None
    public: bool = False
    synthetic_only: bool = False
    token_sha256: str | None = None
    redirect: bool = False
    accel: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    oidc: str | None = None
    trusted_proxies: Sequence[str] = ()
    only_proxies: bool = False
    certificate: str | None = None
    key: str | None = None
    access_log: str = "none"
    log_level: int = logging.WARNING

    def dump(self) -> str:
        """Return the settings as JSON, for a worker process."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Settings:
        """Return the settings that `dump` wrote."""
        return cls(**json.loads(text))

    @property
    def state_folder(self) -> Path:
        """Folder of this service's own files."""
        return Path(self.state)


def usual_state() -> Path:
    """Return the folder for a service's own files, as the XDG base directories have it."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "lundprobe-zarr"
