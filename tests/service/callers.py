"""Callers of a service: access files with tokens, and what they get."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from lundprobe_zarr.service.access.access_file import Grant, add_token

#: Loading those that httpx brings takes longer than a request; nothing here is https.
_NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: Two names for one phantom: a caller of one must not get the other.
OURS, THEIRS = "group-a/ours", "group-b/theirs"


def token_for(access: Path, name: str, email: str | None = None, **grant: Any) -> str:
    """Add a token to an access file; return it."""
    return add_token(access, name, email, Grant.model_validate(grant))


def get(url: str, path: str, token: str | None = None, **headers: str) -> httpx.Response:
    """Answer to a GET, with a token and further headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    return httpx.get(url + path, headers=given, timeout=30, verify=_NO_AUTHORITIES)


def file_of(dataset: str, path: str = "README.md", revision: str = "main") -> str:
    """Path of the URL of a file."""
    return f"/datasets/{dataset}/resolve/{revision}/{path}"
