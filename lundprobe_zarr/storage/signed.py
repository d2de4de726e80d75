"""Byte ranges of S3 objects by signed URL, which takes less of a processor than the client of S3.

That client builds, signs and parses every request anew, and a patch takes a dozen. A URL is signed
by it once for each object and then serves for all of the object's ranges, as plain HTTP. Whatever
fails so is asked for once more by the client itself, whose retries, refreshed credentials and
errors count.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lundprobe_zarr.storage.failures import failures

#: Seconds that a URL is valid for, and used for: the last request has the rest of the time.
_VALID, _USED = 900, 600
#: URLs kept; with more, those of stores long closed would take memory for ever.
_MOST_URLS = 10_000
#: Rounds of ranges that a URL could not read and the client could, after which none are signed.
_ENOUGH = 3
_NOT_ASKED = OSError("not asked for by URL")
#: Options that a signed URL respects. With others, such as keys of encryption or a requester who
#: pays, the client makes every request.
_RESPECTED = frozenset(
    ("key", "secret", "token", "anon", "profile", "endpoint_url", "region_name",
     "max_pool_connections", "signature_version", "retries", "connect_timeout", "read_timeout")
)  # fmt: skip
#: Where the environment says which certificates the client trusts; an HTTP client looks elsewhere.
_CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def range_reader(filesystem: Any, options: Mapping[str, Any]) -> Any:
    """What reads ranges of a file system's objects: it itself, or for S3 its `SignedReads`.

    `options` are the storage options that it was made with.
    """
    if "s3" not in filesystem.protocol or not _can_sign(options):
        return filesystem
    # Kept with the file system, which is of this process alone as its connections must be.
    return vars(filesystem).setdefault("_lundprobe_signed", SignedReads(filesystem))


def _can_sign(options: Mapping[str, Any]) -> bool:
    """Whether URLs signed by a client with these storage options do all that the options ask."""
    names = set(options) - {"client_kwargs", "config_kwargs"}
    for nested in ("client_kwargs", "config_kwargs"):
        names |= set(options.get(nested) or {})
    return names <= _RESPECTED


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
            from lundprobe_zarr.storage.ranges import WebFiles  # of aiohttp, as any S3 client is

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
