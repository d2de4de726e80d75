"""s3fs's client of S3, which checks the range it was sent, and byte ranges by signed URL.

The client builds, signs and parses every request anew, and a patch takes a dozen. A URL is signed
by it once for each object and then serves for all of the object's ranges, as plain HTTP, which
takes less of a processor. Whatever fails so is asked for once more by the client itself, whose
retries, refreshed credentials and errors count.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from s3fs import S3FileSystem

from lundprobe_zarr.storage.failures import failures
from lundprobe_zarr.storage.web import WebFiles, require_range

#: s3fs since 2026 else asks for an object's size first, to fetch large ones in pieces.
_MAY_SPLIT = "max_concurrency" in signature(S3FileSystem._cat_file).parameters
_IN_ONE_REQUEST = {"max_concurrency": 1} if _MAY_SPLIT else {}
#: Seconds that a URL is valid for, and used for: the last request has the rest of the time.
_VALID, _USED = 900, 600
#: URLs kept; with more, those of stores long closed would take memory for ever.
_MOST_URLS = 10_000
#: Rounds of ranges that a URL could not read and the client could, after which none are signed.
_ENOUGH = 3
_NOT_ASKED = OSError("not asked for by URL")
#: Where the environment says which certificates the client trusts; an HTTP client looks elsewhere.
_CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def require_range_of_s3(asked: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """As `require_range`, of what boto was asked for and what it gives."""
    if "Range" in asked:
        require_range(asked["Range"], answer.get("ContentRange"), answer["ContentLength"])


class BucketFiles(S3FileSystem):  # type: ignore[misc]
    """s3fs's file system; a range that was not asked for is asked for again, as s3fs does."""

    takes_seconds = True

    async def _cat_file(
        self, path: str, *where: Any, seconds: float | None = None, **how: Any
    ) -> bytes:
        reading = super()._cat_file(path, *where, **_IN_ONE_REQUEST | how)
        return bytes(await asyncio.wait_for(reading, seconds))

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        answer = await super()._call_s3(method, *akwarglist, **kwargs)
        if method == "get_object":
            with ExitStack() as stack:
                stack.callback(answer["Body"].close)
                require_range_of_s3(kwargs, answer)
                stack.pop_all()  # right: it is to be read
        return answer


def _proxy(url: str) -> str | None:
    """The environment's proxy for a URL; aiohttp would look for it anew at each request."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


class SignedReads:
    """Reads ranges of the objects of `s3`, an `s3fs.S3FileSystem`."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self._web: Any = None
        self._urls: dict[str, tuple[float, str]] = {}
        self._in_vain = 0

    @property
    def ignoring(self) -> set[str]:
        """As of `WebFiles`."""
        return set() if self._web is None else self._web.ignoring

    def cat_ranges(
        self,
        names: Sequence[str],
        starts: Sequence[int],
        stops: Sequence[int],
        on_error: str,
        seconds: float,
    ) -> list[Any]:
        """Bytes of every range, or the client's exception; as fsspec's with `"return"`.

        Takes up to `seconds`, half of them by URL.
        """
        until = time.monotonic() + seconds
        found = self._by_url(names, starts, stops, seconds / 2)
        again = [n for n, data in enumerate(found) if isinstance(data, BaseException)]
        rows = ([column[n] for n in again] for column in (names, starts, stops))
        left = max(seconds / 2, until - time.monotonic())
        read = self._s3.cat_ranges(*rows, on_error=on_error, seconds=left) if again else []
        for n, data in zip(again, read, strict=True):
            self._urls.pop(names[n], None)
            found[n] = data
        self._in_vain += any(not isinstance(data, BaseException) for data in read)
        return found

    def _by_url(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], seconds: float
    ) -> list[Any]:
        if self._in_vain >= _ENOUGH:
            return [_NOT_ASKED] * len(names)
        try:
            urls = [self._url(name) for name in names]
        except failures() as error:  # such as no credentials: the client will say so
            return [error] * len(names)
        if not urls:
            return []
        client = self._client(urls[0])
        found: list[Any] = client.cat_ranges(
            urls, list(starts), list(stops), on_error="return", seconds=seconds
        )
        return found

    def _client(self, url: str) -> Any:
        if self._web is None:
            # As that does: with certificates and proxies of the environment.
            trusted = next((os.environ[n] for n in _CERTIFICATES if os.environ.get(n)), None)
            self._web = WebFiles(
                encoded=True,
                ssl=ssl.create_default_context(cafile=trusted),
                proxy=_proxy(url),
                skip_instance_cache=True,
            )
        return self._web

    def _url(self, name: str) -> str:
        until, url = self._urls.get(name, (0.0, ""))
        now = time.monotonic()
        if now > until:
            if len(self._urls) >= _MOST_URLS:
                self._urls.clear()
            url = str(self._s3.url(name, expires=_VALID))
            self._urls[name] = now + _USED, url
        return url
