"""Bytes of files: `/datasets/<owner>/<name>/resolve/<revision>/<path>`, whole or one range.

Read without routing and, from a local disk, without a thread where the page cache has the bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.types import Scope, Send

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.callers import Caller
from lundprobe_zarr.service.core import Service
from lundprobe_zarr.service.datasets.index import File
from lundprobe_zarr.service.datasets.published import Published, Revision, kind_of
from lundprobe_zarr.service.http.answers import HttpError, no_entry
from lundprobe_zarr.storage.location import Location, Range

_LOG = logging.getLogger("lundprobe_zarr.service")

_PREFIX, _RESOLVE = "/datasets/", "resolve"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
#: Most bytes sent in one piece: a slow client holds no more of a file in memory.
_PIECE = 1 << 20
#: The same from a bucket, where a piece is a request.
_FAR_PIECE = 8 << 20
#: Seconds after which a client that takes nothing of an answer is left.
_STALLED_SECONDS = 120
#: Reads what the page cache has, and nothing else; 0 where the system cannot.
_CACHED_ONLY = getattr(os, "RWF_NOWAIT", 0)
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0)
_TYPES = {
    "json": b"application/json",
    "md": b"text/markdown; charset=utf-8",
    "yaml": b"text/plain; charset=utf-8",
    "parquet": b"application/vnd.apache.parquet",
}
_BINARY = b"application/octet-stream"
_Headers = list[tuple[bytes, bytes]]
_T = TypeVar("_T")
#: Seconds that a signed URL of a bucket is valid for.
_SIGNED_SECONDS = 300
#: Requests to buckets at a time; each waits in a thread.
_FAR_READERS = ThreadPoolExecutor(64, "bucket")


def is_content(path: str) -> bool:
    """Return whether a request's path names the bytes of a file."""
    return path.startswith(_PREFIX) and f"/{_RESOLVE}/" in path


@dataclass(frozen=True, slots=True)
class _FileRequest:
    """A file as asked for: dataset, revision and path, unquoted."""

    name: str
    revision: str
    path: str


def _parse(raw_path: bytes) -> _FileRequest:
    parts = raw_path.decode("latin-1").split("/", 6)
    if len(parts) != 7 or parts[4] != _RESOLVE:
        raise HttpError(404, "expected /datasets/OWNER/NAME/resolve/REVISION/PATH", "EntryNotFound")
    owner, name, revision, path = (unquote(parts[n]) for n in (2, 3, 5, 6))
    return _FileRequest(f"{owner}/{name}", revision, path)


async def send_content(service: Service, scope: Scope, send: Send) -> None:
    """Answer a request for a file's bytes. Raises `HttpError`."""
    if scope["method"] not in ("GET", "HEAD"):
        raise HttpError(405, "Files can only be read: GET or HEAD.", headers={"Allow": "GET, HEAD"})
    requested = _parse(scope["raw_path"])
    visit: Visit = scope["visit"]
    caller: Caller = scope["caller"]
    visit.dataset, visit.path = requested.name, requested.path
    now = service.named_revision(
        caller, requested.name, kind_of(requested.path), requested.revision
    )
    visit.sha = now.sha
    file = now.file(requested.path)
    if file is None:
        raise no_entry(requested.name, requested.path, now.sha)
    given = dict(scope["headers"])
    headers = _headers(now, file, requested.revision, service.settings.public)
    if (status := _precondition(given, file)) is not None:
        await _send_head(send, status, headers)
        return
    span = _span(given, file, now.sha)
    if span.is_partial:
        visit.range = f"{span.start}-{span.stop - 1}"
    if scope["method"] == "HEAD":
        await _send_head(send, span.status, headers + _span_headers(span, file))
    elif elsewhere := await _elsewhere(service, requested.name, file):
        # Sent by another server: the log has the bytes that it was asked to send.
        visit.sent = span.stop - span.start
        await _send_head(send, elsewhere.status, [*headers, *elsewhere.headers])
    else:
        published = service.published[requested.name]
        sending = _send_far if published.root is None else _send_local
        await sending(published, file, span, send, headers + _span_headers(span, file))


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """An answer that leaves the bytes to another server."""

    status: int
    headers: _Headers


async def _elsewhere(service: Service, name: str, file: File) -> _Elsewhere | None:
    """Return the answer that leaves the bytes to nginx or to the bucket; None to send them here.

    nginx reads the file that `X-Accel-Redirect` names, and the range of the client's request. A
    bucket gets the client by a redirect, whose URL is valid for some minutes.
    """
    published, settings = service.published[name], service.settings
    if published.root is not None and settings.accel is not None:
        _require_indexed(published, os.stat(f"{published.root}/{file.path}"), file)  # noqa: PTH116
        place = f"{settings.accel}/{name}/{file.path}"
        return _Elsewhere(200, [(b"x-accel-redirect", place.encode())])
    if published.root is None and settings.redirect:
        if await _in_thread(file, published.location.stamp, file.path) != file.stamp:
            raise _replaced(published, file)
        url = await _in_thread(file, published.location.signed_url, file.path, _SIGNED_SECONDS)
        return _Elsewhere(302, [(b"location", url.encode())])
    return None


@dataclass(frozen=True, slots=True)
class _Span:
    """The bytes [start, stop) of a file to send, and whether a range was asked for."""

    start: int
    stop: int
    is_partial: bool

    @property
    def status(self) -> int:
        """HTTP status of the answer."""
        return 206 if self.is_partial else 200


def _headers(now: Revision, file: File, revision: str, public: bool) -> _Headers:
    kind = _TYPES.get(file.path.rpartition(".")[2], _BINARY)
    cache = b"public" if public else b"private"
    # A revision's bytes never change; what `main` is does.
    cache += b", no-cache" if revision != now.sha else b", max-age=31536000, immutable"
    return [
        (b"x-repo-commit", now.sha.encode()),
        (b"etag", f'"{file.etag}"'.encode()),
        (b"accept-ranges", b"bytes"),
        (b"content-type", kind),
        (b"cache-control", cache),
        (b"vary", b"Authorization, Cookie"),  # a browser sends its token as a cookie
    ]


def _precondition(given: dict[bytes, bytes], file: File) -> int | None:
    """Return the status of an answer without body (RFC 9110, section 13); None to send it."""
    if (wanted := given.get(b"if-match")) is not None and not _names(wanted, file, weak=False):
        return 412
    if (held := given.get(b"if-none-match")) is not None and _names(held, file, weak=True):
        return 304
    return None


def _names(tags: bytes, file: File, weak: bool) -> bool:
    """Return whether a list of entity tags names a file's; by strong comparison unless `weak`."""
    listed = [tag.strip() for tag in tags.decode("latin-1").split(",")]
    wanted = f'"{file.etag}"'
    return "*" in listed or wanted in listed or (weak and f"W/{wanted}" in listed)


def _span(given: dict[bytes, bytes], file: File, sha: str) -> _Span:
    """Return the span that a request asks for. A range that is no single one is ignored.

    Raises `HttpError` (416) for a range outside the file.
    """
    whole = _Span(0, file.size, False)
    matched = _RANGE.fullmatch(given.get(b"range", b"").decode("latin-1").strip())
    if matched is None or not (matched[1] or matched[2]):
        return whole
    if (unless := given.get(b"if-range")) is not None and unless.decode("latin-1") != (
        f'"{file.etag}"'
    ):
        return whole
    if not matched[1]:  # the last bytes
        start, stop = max(0, file.size - int(matched[2])), file.size
    else:
        start = int(matched[1])
        stop = min(file.size, int(matched[2]) + 1) if matched[2] else file.size
        if matched[2] and int(matched[2]) < start:
            return whole
    if start >= stop:
        raise HttpError(
            416,
            f"{file.path} has {file.size} bytes; the range asked for is not in it.",
            headers={"Content-Range": f"bytes */{file.size}", "X-Repo-Commit": sha},
        )
    return _Span(start, stop, True)


def _span_headers(span: _Span, file: File) -> _Headers:
    found = [(b"content-length", b"%d" % (span.stop - span.start))]
    if span.is_partial:
        place = b"bytes %d-%d/%d" % (span.start, span.stop - 1, file.size)
        found.append((b"content-range", place))
    return found


async def _send_head(send: Send, status: int, headers: _Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body"})


async def _send_local(
    published: Published, file: File, span: _Span, send: Send, headers: _Headers
) -> None:
    """Send bytes of a local file, a piece at a time, if it is the file of the index."""
    try:
        fd = os.open(f"{published.root}/{file.path}", os.O_RDONLY | _CLOSE_ON_EXEC)
    except OSError:
        raise _replaced(published, file) from None
    try:
        _require_indexed(published, os.fstat(fd), file)
        await send({"type": "http.response.start", "status": span.status, "headers": headers})
        start = span.start
        while True:
            stop = min(span.stop, start + _PIECE)
            data = _read_cached(fd, start, stop - start)
            if data is None:
                data = await asyncio.to_thread(os.pread, fd, stop - start, start)
            if len(data) != stop - start:
                raise OSError(f"{file.path}: {len(data)} bytes instead of {stop - start}")
            if stop == span.stop:
                await send({"type": "http.response.body", "body": data})
                return
            await _send_piece(send, data)
            start = stop
    finally:
        os.close(fd)


def _require_indexed(published: Published, status: os.stat_result, file: File) -> None:
    """Raise `HttpError` (503) if a file is not the one of the index."""
    if status.st_size != file.size or str(status.st_mtime) != file.stamp:
        raise _replaced(published, file)


def _read_cached(fd: int, start: int, size: int) -> bytes | bytearray | None:
    """Return bytes that the page cache holds; None if it does not hold all of them."""
    if not size:
        return b""
    if not _CACHED_ONLY:
        return None
    data = bytearray(size)
    try:
        read = os.preadv(fd, [data], start, _CACHED_ONLY)
    except OSError:  # not in the cache, or a file system that cannot tell
        return None
    return data if read == size else None


async def _send_far(
    published: Published, file: File, span: _Span, send: Send, headers: _Headers
) -> None:
    """Send bytes of a bucket, a piece at a time; the first is read before anything is said."""
    start = span.start
    while True:
        stop = min(span.stop, start + _FAR_PIECE)
        data = await _in_thread(file, _read_far, published.location, file, start, stop)
        if data is None:
            raise _replaced(published, file)
        if start == span.start:
            await send({"type": "http.response.start", "status": span.status, "headers": headers})
        if stop == span.stop:
            await send({"type": "http.response.body", "body": data})
            return
        await _send_piece(send, data)
        start = stop


async def _send_piece(send: Send, data: bytes | bytearray) -> None:
    """Send a piece that is not the last. A client that takes nothing for a time is left."""
    try:
        async with asyncio.timeout(_STALLED_SECONDS):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except TimeoutError:
        raise ClientDisconnect from None


def _read_far(location: Location, file: File, start: int, stop: int) -> bytes | None:
    """Return bytes of a bucket's object; None if it is not the one of the index.

    The object is looked at after it is read: nothing else tells that it was not replaced before.
    """
    wanted = [Range(file.path, start, stop)] if start < stop else []
    data = b"".join(location.read_ranges(wanted))
    is_indexed = len(data) == stop - start and location.stamp(file.path) == file.stamp
    return data if is_indexed else None


async def _in_thread(file: File, action: Callable[..., _T], *arguments: Any) -> _T:
    """Ask a bucket, in a thread. Raises `HttpError` (503) if it fails; the log says why."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_FAR_READERS, action, *arguments)
    except (DatasetError, FileNotFoundError) as error:
        _LOG.error("the storage failed: %s", error)
        raise HttpError(
            503,
            f"The storage behind this service failed while it read {file.path}. Try again.",
            headers={"Retry-After": "5"},
        ) from error


def _replaced(published: Published, file: File) -> HttpError:
    """Return the error for a file that is not the one of the index any more."""
    published.refused(file)
    return HttpError(
        503,
        f"{file.path} was replaced since this revision was opened. Open the dataset again in a "
        "moment.",
        headers={"Retry-After": "5"},
    )
