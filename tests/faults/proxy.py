"""A proxy on loopback in front of a server of HTTP or S3 that spoils what passes, as told.

`Proxy.choose` is asked for every request which fault it meets, if any. What it does of its own, a
wrong byte or place, follows from the request alone, so that runs repeat.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.location import Location
from tests.anywhere.servers import (
    azure_connection,
    azure_server,
    file_server,
    gcs_server,
    s3_server,
)

#: Faults of any request: answers, S3's own, resets, silence.
STATUSES = {"500": 500, "503": 503, "429": 429}
S3_CODES = {"slow down": (503, "SlowDown"), "throttled": (503, "RequestLimitExceeded")}
RESETS = ("reset before", "reset amid", "nonsense")
SILENT = ("stall", "stall amid", "trickle")
#: Faults of an answer's bytes.
SPOILT = ("short", "garbled", "other bytes", "other range", "whole")
#: Faults of what is sent to be stored.
UPLOADS = ("500", "reset before", "stored, then reset", "stored, then 500", "stored cut short")
ON_WEB = (*STATUSES, *RESETS, *SILENT, *SPOILT)
ON_S3 = (*ON_WEB, *S3_CODES)
#: Faults that S3's client makes up for itself, after pauses of seconds.
SLOWLY_REPEATED = (*STATUSES, *S3_CODES)

_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "te", "server", "date")
_SHIFT = 7
Choice = Callable[[str, str], str | None]


def nothing(method: str, path: str) -> str | None:
    """No fault at all."""
    return None


@dataclass
class Proxy:
    """Which faults requests meet, and how many met each."""

    upstream: tuple[str, int]
    choose: Choice = nothing
    met: Counter[str] = field(default_factory=Counter)
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> str | None:
        """The fault that a request meets."""
        with self._lock:
            found = self.choose(method, path)
            if found is not None:
                self.met[found] += 1
            return found

    @contextmanager
    def spoiling(self, choose: Choice) -> Iterator[Counter[str]]:
        """Let requests meet faults inside the block; yields how many met each."""
        self.choose, self.met = choose, Counter()
        try:
            yield self.met
        finally:
            self.choose = nothing


def lasting(fault: str, part: str = "", methods: Sequence[str] = ("GET", "HEAD")) -> Choice:
    """Every request of these methods whose path holds `part` meets the fault."""
    return lambda method, path: fault if part in path and method in methods else None


def passing(
    fault: str, parts: Sequence[str] = ("",), times: int = 1, methods: Sequence[str] = ("GET",)
) -> Choice:
    """The first requests for each object whose path holds one of `parts` meet the fault."""
    seen: Counter[str] = Counter()

    def choose(method: str, path: str) -> str | None:
        if method not in methods or not any(part in path for part in parts):
            return None
        seen[path] += 1
        return fault if seen[path] <= times else None

    return choose


def sprinkled(faults: Sequence[str], share: float, seed: int, methods: Sequence[str]) -> Choice:
    """A share of the requests meet one of the faults each; never the same object twice in a row."""
    rng, hit = Random(seed), set[str]()

    def choose(method: str, path: str) -> str | None:
        if method not in methods or path in hit or rng.random() >= share:
            hit.discard(path)
            return None
        hit.add(path)
        return rng.choice(faults)

    return choose


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((v for k, v in self.headers if k.lower() == name), "")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_expect_100(self) -> bool:
        kept = super().handle_expect_100()
        self.wfile.flush()
        return kept

    def do_GET(self) -> None:
        fault = self.server.proxy.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is None:
            self._send(self._forward(body))
        elif fault in STATUSES:
            self._send(_Answer(STATUSES[fault], [], b""))
        elif fault in S3_CODES:
            self._send(_refusal(*S3_CODES[fault]))
        elif fault in ("reset before", "stall"):
            self._end(fault)
        elif fault == "nonsense":
            self.wfile.write(b"no answer that HTTP knows\r\n\r\n")
            self.close_connection = True
        elif fault.startswith("stored"):
            self._store(fault, body)
        elif fault in ("reset amid", "stall amid", "trickle"):
            self._send_part(fault, self._forward(body))
        else:
            self._send(self._spoilt(fault))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _forward(self, body: bytes, headers: dict[str, str] | None = None) -> _Answer:
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=20)
        given = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
        if body or "Content-Length" in given:
            given["Content-Length"] = str(len(body))
        for name, value in (headers or {}).items():
            given.pop(name, None)
            if value:
                given[name] = value
        try:
            upstream.request(self.command, self.path, body or None, given)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP]
        if self.command == "HEAD":
            kept.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        return _Answer(answer.status, kept, data)

    def _head(self, answer: _Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def _send(self, answer: _Answer) -> None:
        self._head(answer)
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _send_part(self, fault: str, answer: _Answer) -> None:
        self._head(answer)
        if fault == "trickle":
            for place in range(len(answer.body)):
                self.wfile.write(answer.body[place : place + 1])
                self.wfile.flush()
                if self.server.proxy.ended.wait(0.05):
                    break
            return
        self.wfile.write(answer.body[: len(answer.body) // 2])
        self.wfile.flush()
        self._end(fault)

    def _end(self, fault: str) -> None:
        if fault.startswith("stall"):
            self.server.proxy.ended.wait()
        else:  # with a reset, not in order
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def _store(self, fault: str, body: bytes) -> None:
        answer = self._forward(body[: len(body) // 2] if fault == "stored cut short" else body)
        if fault == "stored, then reset":
            self._end("reset")
        elif fault == "stored, then 500":
            self._send(_Answer(500, [], b""))
        else:
            self._send(answer)

    def _spoilt(self, fault: str) -> _Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if fault in ("other bytes", "other range", "whole") and asked:
            return self._other(fault, int(asked[1]), int(asked[2]))
        answer = self._forward(b"")
        if answer.status >= 300:
            return answer
        if fault == "short":
            return _Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2])
        middle = len(answer.body) // 2
        spoilt = bytearray(answer.body)
        spoilt[middle : middle + 1] = bytes([spoilt[middle] ^ 16]) if spoilt else b""
        return _Answer(answer.status, answer.headers, bytes(spoilt))

    def _other(self, fault: str, start: int, last: int) -> _Answer:
        """Another range than was asked for: as it is, or as if it were the one asked for."""
        if fault == "whole":
            return self._forward(b"", {"Range": ""})
        right = self._forward(b"")
        first = max(0, start - _SHIFT) if start else _SHIFT
        wrong = self._forward(b"", {"Range": f"bytes={first}-{last - start + first}"})
        if fault == "other range" or right.status != 206:
            return wrong
        body = (wrong.body + bytes(len(right.body)))[: len(right.body)]
        return _Answer(right.status, right.headers, body)


def _refusal(status: int, code: str) -> _Answer:
    text = f"<Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
    return _Answer(status, [("Content-Type", "application/xml")], text.encode())


@contextmanager
def proxied(url: str) -> Iterator[tuple[str, Proxy]]:
    """A proxy in front of the server at `url`; yields its own URL."""
    parts = urlsplit(url)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.proxy = Proxy((str(parts.hostname), int(parts.port or 80)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.proxy
    finally:
        server.proxy.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Remote:
    """A dataset behind a proxy: its URL, the options to reach it, the proxy."""

    url: str
    options: dict[str, Any]
    proxy: Proxy

    def location(self, **options: Any) -> Location:
        """Where it is, reached with these options more."""
        return Location(self.url, self.reach(**options))

    def reach(self, **options: Any) -> dict[str, Any]:
        """Options to reach it."""
        return {**self.options, **options}


@contextmanager
def web_behind(dataset: Path) -> Iterator[Remote]:
    """The dataset on a web server behind a proxy."""
    with file_server(dataset.parent) as (url, _), proxied(url) as (through, proxy):
        yield Remote(f"{through}/{dataset.name}", {}, proxy)


@contextmanager
def s3_behind(dataset: Path) -> Iterator[Remote]:
    """The dataset in a bucket of an S3 server behind a proxy."""
    import s3fs

    with s3_server() as (url, _), proxied(url) as (through, proxy):
        options = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": "none", "endpoint_url": through}
        s3fs.S3FileSystem(**options).makedirs("faults", exist_ok=True)
        remote = Remote(f"s3://faults/{uuid.uuid4().hex}", options, proxy)
        assert not copy_dataset(Location(dataset), remote.location()).failures
        yield remote


@contextmanager
def gcs_behind(dataset: Path) -> Iterator[Remote]:
    """The dataset in a bucket of Google's emulator behind a proxy."""
    with gcs_server() as (url, options), proxied(url) as (through, proxy):
        yield _filled(Remote("gs://bucket/d", {**options, "endpoint_url": through}, proxy), dataset)


@contextmanager
def azure_behind(dataset: Path) -> Iterator[Remote]:
    """The dataset in a container of Azure's emulator behind a proxy."""
    with azure_server() as url, proxied(url) as (through, proxy):
        options = {"connection_string": azure_connection(through)}
        yield _filled(Remote("abfs://container/d", options, proxy), dataset)


def _filled(remote: Remote, dataset: Path) -> Remote:
    # Google's emulator knows no credentials: anyone can read it.
    report = copy_dataset(Location(dataset), remote.location(), allow_public=True)
    assert not report.failures
    return remote


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """What `action` gives or raises; fails if that takes longer, and does not wait for it."""
    outcome: list[tuple[bool, Any]] = []

    def act() -> None:
        try:
            outcome.append((True, action()))
        except BaseException as error:  # noqa: BLE001 - handed on
            outcome.append((False, error))

    thread = threading.Thread(target=act, daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise AssertionError(f"no end after {time.monotonic() - started:.1f} s")
    done, result = outcome[0]
    if not done:
        raise result
    return result
