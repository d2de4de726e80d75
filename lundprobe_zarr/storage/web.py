"""fsspec's client of web servers, which also checks that the range sent is the one requested.

A checksum shows that a chunk is intact, not which chunk it is. A proxy that answers with another
range could substitute one chunk for another of the same length.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from lundprobe_zarr.storage.failures import is_gone

_REQUESTED = re.compile(r"bytes=(\d*)-(\d*)")
_SENT = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
WHOLE = 200


def require_range(requested: str, sent: str | None, length: int) -> None:
    """Require that an answer's `Content-Range` and length are those of the `Range` header.

    Fewer bytes are right at the end of the object. Raises aiohttp's `ClientPayloadError`, as for
    an answer damaged in transit: the request is repeated.
    """
    wanted, found = _REQUESTED.fullmatch(requested), _SENT.fullmatch(sent or "")
    if wanted is None:
        return
    if found is None or (found[3] == "*" and not (wanted[1] and wanted[2])):
        raise aiohttp.ClientPayloadError(f"{sent!r} was sent; {requested!r} was requested")
    size = None if found[3] == "*" else int(found[3])
    if size is None:
        start, last = int(wanted[1]), int(wanted[2])
    elif wanted[1]:
        start, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
    else:  # the last bytes
        start, last = max(0, size - int(wanted[2])), size - 1
    if (int(found[1]), int(found[2]), length) != (start, last, last + 1 - start):
        raise aiohttp.ClientPayloadError(
            f"{sent!r} and {length} bytes were sent; {requested!r} was requested"
        )


class WebFiles(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's web client, which checks the range it was sent.

    `ignoring` are the servers that sent a whole object where a part was requested.
    """

    takes_seconds = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ignoring: set[str] = set()

    @property
    def trusts_environment(self) -> bool:
        """Whether the environment's proxies are used: as in aiohttp, only if `trust_env` is set."""
        return bool(self.client_kwargs.get("trust_env"))

    def address(self, name: str) -> tuple[str, dict[str, str]] | None:
        """Return the URL of an object and the headers to send; None if only this client can."""
        url, query = self.encode_url(name), dict(self.kwargs.get("params") or {})
        if query:
            url = url.with_query([*url.query.items(), *query.items()])
        given = (self.client_kwargs.get("headers"), self.kwargs.get("headers"))
        headers = {str(k): str(v) for some in given for k, v in dict(some or {}).items()}
        texts = (str(url), *headers, *headers.values())
        if not all(text.isascii() and text.isprintable() for text in texts):
            return None  # libcurl takes no other: this client encodes it, or says what is wrong
        return str(url), headers

    def _raise_not_found_for_status(self, answer: Any, url: str) -> None:
        """Raise the error of an answer; a removed dataset is not a missing object."""
        if is_gone(answer):
            answer.raise_for_status()
        super()._raise_not_found_for_status(answer, url)

    async def _cat_file(
        self,
        url: str,
        start: int | None = None,
        end: int | None = None,
        seconds: float | None = None,
        **kwargs: Any,
    ) -> bytes:
        return await asyncio.wait_for(self._cat_range(url, start, end, **kwargs), seconds)

    async def _cat_range(
        self, url: str, start: int | None, end: int | None, **kwargs: Any
    ) -> bytes:
        if (start is None and end is None) or start == end:
            return bytes(await super()._cat_file(url, start, end, **kwargs))
        options = {**self.kwargs, **kwargs}
        requested = str(await self._process_limits(url, start, end))
        headers = {**options.pop("headers", {}), "Range": requested}
        session = await self.set_session()
        async with session.get(self.encode_url(url), headers=headers, **options) as answer:
            data = bytes(await answer.read())
            self._raise_not_found_for_status(answer, url)
        sent = answer.headers.get("Content-Range")
        if answer.status == WHOLE and sent is None:  # the server ignores ranges
            if len(data) > len(data[start:end]):
                self.ignoring.add(str(answer.url.origin()))
            return data[start:end]
        require_range(requested, sent, len(data))  # some servers send one with the wrong status
        return data
