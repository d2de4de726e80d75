"""URLs and headers for requests of byte ranges, on the web and in each kind of bucket.

The clients of buckets build, sign and parse every request, and a patch takes a dozen. Here the
client signs an object's URL once, which serves for all its ranges; for GCS the client's token is
sent. A range that fails is requested again by the client itself, with its own retries, refreshed
credentials and errors.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lundprobe_zarr.storage.clients import read_by_client
from lundprobe_zarr.storage.failures import failures, is_spoilt
from lundprobe_zarr.storage.transport import (
    Answer,
    Headers,
    IncompleteReadError,
    Line,
    RangeRequest,
    StatusError,
    fetch,
)
from lundprobe_zarr.storage.web import WHOLE, WebFiles, require_range

#: Seconds that a signed URL is valid. It is used for less, so that the last request can finish.
_VALID = 900
#: Most URLs kept: those of stores that were closed would take memory.
_MOST_URLS = 10_000
#: Rounds in which the client read what a URL could not; after these no URL is signed.
_ENOUGH = 3
_NOT_ASKED = OSError("not requested by URL")
#: Variables that name the certificates a bucket's client trusts; libcurl reads others.
_CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
#: An object's URL and the headers to send; None if only the client can request it.
_Address = Callable[[str], tuple[str, Headers] | None]


def environment_proxy(url: str) -> str:
    """Return the environment's proxy for a URL; empty for none."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return ""
    return getproxies().get(parts.scheme, "")


def _certificates() -> str | None:
    return next((os.environ[n] for n in _CERTIFICATES if os.environ.get(n)), None)


class WebRanges:
    """Reads ranges of the objects of `web`, a `WebFiles`; `silence` is as in `Line`."""

    def __init__(self, web: Any, silence: float) -> None:
        self._web = web
        self._silence = silence
        self._line: Line | None = None
        self._places: dict[str, tuple[str, Headers]] = {}
        self.ignoring: set[str] = set()

    def cat_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], seconds: float
    ) -> list[Any]:
        """Return the bytes of every range, or its error, within so many seconds."""
        places = [place for name in names if (place := self._place(name))]
        if len(places) < len(names):
            return read_by_client(self._web, names, starts, stops, seconds)
        if self._line is None:
            trusts = bool(places) and self._web.trusts_environment
            self._line = Line(self._silence, environment_proxy(places[0][0]) if trusts else "")
        return read_ranges(places, starts, stops, seconds, self._line, self.ignoring)

    def _place(self, name: str) -> tuple[str, Headers] | None:
        place = self._places.get(name) or self._web.address(name)
        if place is not None:
            if len(self._places) >= _MOST_URLS:
                self._places.clear()
            self._places[name] = place
        return place


class BucketRanges:
    """Reads ranges of objects of `client`, a bucket's file system; `silence` is as in `Line`."""

    def __init__(self, client: Any, silence: float, kind: _Bucket) -> None:
        self._client = client
        self._silence = silence
        self._used = kind.used
        self._address = kind.address(client)
        self._line: Line | None = None
        self._places: dict[str, tuple[float, tuple[str, Headers] | None]] = {}
        self._in_vain = 0
        self.ignoring: set[str] = set()

    def cat_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], seconds: float
    ) -> list[Any]:
        """Return bytes or errors as `WebRanges` does; half of the time is for the client."""
        until = time.monotonic() + seconds
        found = self._by_url(names, starts, stops, seconds / 2)
        again = [n for n, data in enumerate(found) if _asks_client(data)]
        left = max(seconds / 2, until - time.monotonic())
        read = self._by_client(names, starts, stops, again, left)
        for n, data in zip(again, read, strict=True):
            self._places.pop(names[n], None)
            found[n] = data
        if any(not isinstance(data, BaseException) for data in read):
            self._in_vain += 1
        elif len(again) < len(names):
            self._in_vain = 0
        return found

    def _by_url(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], seconds: float
    ) -> list[Any]:
        if self._in_vain >= _ENOUGH:
            return [_NOT_ASKED] * len(names)
        try:
            places = [place for name in names if (place := self._place(name))]
        except failures() as error:  # e.g. without credentials: the client reports that
            return [error] * len(names)
        if len(places) < len(names):
            return [_NOT_ASKED] * len(names)
        if self._line is None:
            proxy = environment_proxy(places[0][0]) if places else ""
            self._line = Line(self._silence, proxy, _certificates())
        return read_ranges(places, starts, stops, seconds, self._line, self.ignoring)

    def _by_client(
        self,
        names: Sequence[str],
        starts: Sequence[int],
        stops: Sequence[int],
        again: Sequence[int],
        seconds: float,
    ) -> list[Any]:
        if not again:
            return []
        rows = [names[n] for n in again], [starts[n] for n in again], [stops[n] for n in again]
        return read_by_client(self._client, *rows, seconds)

    def _place(self, name: str) -> tuple[str, Headers] | None:
        until, place = self._places.get(name, (-math.inf, None))
        now = time.monotonic()
        if now > until:
            if len(self._places) >= _MOST_URLS:
                self._places.clear()
            place = self._address(name)
            self._places[name] = now + self._used, place
        return place


def read_ranges(
    places: Sequence[tuple[str, Headers]],
    starts: Sequence[int],
    stops: Sequence[int],
    seconds: float,
    line: Line,
    ignoring: set[str],
) -> list[Any]:
    """Read a range at every place; record servers that send whole objects instead."""
    spans = list(zip(starts, stops, strict=True))
    requests = [
        RangeRequest(url, start, stop, headers)
        for (url, headers), (start, stop) in zip(places, spans, strict=True)
    ]
    wanted = [n for n, (start, stop) in enumerate(spans) if stop > start]
    found: list[Any] = [b""] * len(spans)
    for n, answer in zip(wanted, fetch([requests[n] for n in wanted], seconds, line), strict=True):
        found[n] = answer
        if isinstance(answer, Answer):
            found[n] = _checked(answer, requests[n], ignoring)
    return found


def _checked(answer: Answer, request: RangeRequest, ignoring: set[str]) -> Any:
    """Return the bytes of a range from an answer, or the error."""
    if answer.status not in (WHOLE, 206):
        return StatusError(answer.status, answer.headers)
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":  # none was requested; its bytes are not those of the object
        return IncompleteReadError(
            f"the answer is encoded as {encoding!r}, which was not requested"
        )
    sent = answer.headers.get("Content-Range")
    if answer.status == WHOLE and sent is None:  # the server ignores ranges
        wanted = answer.body[request.start : request.stop]
        if len(answer.body) > len(wanted):
            parts = urlsplit(answer.url)
            ignoring.add(f"{parts.scheme}://{parts.netloc}")
        return wanted
    try:
        require_range(request.bytes, sent, len(answer.body))
    except failures() as error:
        return error
    return answer.body


def _asks_client(data: Any) -> bool:
    """Return whether to ask the client: not after a timeout or damage, which is retried as is."""
    failed = isinstance(data, BaseException)
    return failed and not isinstance(data, TimeoutError) and not is_spoilt(data)


@dataclass(frozen=True)
class _Bucket:
    """Rules by which names in a kind of bucket become URLs.

    Attributes
    ----------
    address : callable
        Returns the `_Address` of a file system.
    used : float
        Seconds that a URL and its headers are used.
    options : frozenset of str
        Storage options that the URLs respect. With others, such as encryption keys or
        requester-pays, the client makes every request.
    """

    address: Callable[[Any], _Address]
    used: float
    options: frozenset[str]


def _of_s3(client: Any) -> _Address:
    return lambda name: (str(client.url(name, expires=_VALID)), {})


def _of_gcs(client: Any) -> _Address:
    def address(name: str) -> tuple[str, Headers]:
        headers: dict[str, str] = {}
        client.credentials.apply(headers)  # renews the token minutes before it expires
        return str(client.url(name)), headers

    return address


def _of_azure(client: Any) -> _Address:
    parts = (part.partition("=") for part in (client.connection_string or "").split(";"))
    has_key = client.account_key or any(name == "AccountKey" for name, _, _ in parts)
    # Only an account key signs without a request to the server.
    return lambda name: (str(client.url(name, expires=_VALID)), {}) if has_key else None


_BUCKETS = {
    "s3": _Bucket(_of_s3, 600, frozenset(
        ("key", "secret", "token", "anon", "profile", "endpoint_url", "region_name",
         "max_pool_connections", "signature_version", "retries", "connect_timeout",
         "read_timeout"))),
    "gs": _Bucket(_of_gcs, 60, frozenset(("token", "project", "endpoint_url", "access"))),
    "abfs": _Bucket(_of_azure, 600, frozenset(
        ("connection_string", "account_name", "account_key"))),
}  # fmt: skip
#: Options of the web and Hub clients that are respected here.
_OF_WEB = frozenset(
    ("headers", "params", "trust_env", "encoded", "simple_links", "same_scheme", "block_size",
     "size_policy", "cache_type", "cache_options", "endpoint", "revision", "token")
)  # fmt: skip
#: Options of fsspec itself, for any file system.
_OF_FSSPEC = frozenset(
    ("skip_instance_cache", "use_listings_cache", "listings_expiry_time", "max_paths")
)
_NESTED = ("client_kwargs", "config_kwargs")


def range_reader(client: Any, options: Mapping[str, Any], silence: float) -> Any:
    """Return the reader of ranges of a file system's objects; None if it reads them itself.

    `options` are the storage options that `client` was made with; `silence` is as in `Line`.
    """
    kinds = type(client).protocol
    kind = next((name for name in _BUCKETS if name in kinds), None)
    if isinstance(client, WebFiles):
        minded = _OF_WEB
    elif kind is not None:
        minded = _BUCKETS[kind].options
    else:
        return None
    if not _names(options) <= minded | _OF_FSSPEC:
        return None
    if kind is None:
        return WebRanges(client, silence)
    return BucketRanges(client, silence, _BUCKETS[kind])


def _names(options: Mapping[str, Any]) -> set[str]:
    names = set(options) - set(_NESTED)
    for nested in _NESTED:
        names |= set(options.get(nested) or {})
    return names
