"""Heads of requests that are too long, too slow or no HTTP; clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import suppress

import pytest

from lundprobe_zarr.service.http import protocol


@pytest.fixture
def connect(served):
    host, port = served.url.removeprefix("http://").split(":")
    opened = []

    def connection():
        opened.append(socket.create_connection((host, int(port)), timeout=20))
        return opened[-1]

    yield connection
    for each in opened:
        each.close()


def answer(connection: socket.socket) -> bytes:
    """All that arrives until the server closes the connection."""
    found = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            found += data
    return found


def one_answer(connection: socket.socket) -> bytes:
    """The next answer of a connection that stays open, to /healthz."""
    found = b""
    while not found.endswith(b'{"status":"ok"}'):
        data = connection.recv(1 << 16)
        assert data, found
        found += data
    return found


def test_a_head_without_end_is_refused(connect):
    connection = connect()
    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
    with suppress(OSError):  # it is closed before all is sent
        for number in range(10_000):
            connection.sendall(b"x-%d: %s\r\n" % (number, b"y" * 1000))
    found = answer(connection)
    assert not found or found.startswith(b"HTTP/1.1 431")


def test_a_long_path_is_refused(connect):
    connection = connect()
    connection.sendall(b"GET /" + b"a" * 100_000)
    found = answer(connection)
    assert not found or found.startswith(b"HTTP/1.1 431")


def test_a_slow_head_loses_its_connection(connect, monkeypatch):
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.3)
    connection = connect()
    started = time.monotonic()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: ")
    assert answer(connection) == b""
    assert time.monotonic() - started < 10


def test_a_pause_between_requests_keeps_the_connection(connect, monkeypatch):
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.2)
    connection = connect()
    for _ in range(3):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.4)


def test_many_requests_on_one_connection_are_not_one_long_head(connect):
    connection = connect()
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 8000 + b"\r\n\r\n"
    for _ in range(20):
        connection.sendall(request)
        assert one_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0",
        b"GET http://elsewhere/api/datasets HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /api/x HTTP/1.1\r\nhost: x\r\nauthorization: \xff\xfe\r\nconnection: close\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_no_data_and_no_failure(connect, sent):
    connection = connect()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    found = answer(connection)
    assert b" 500 " not in found[:20]
    assert not found or found[9:10] == b"4"


def test_a_client_that_leaves_is_in_the_audit_log(connect, served, dataset):
    files = [p for p in (dataset / "patients").rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size).relative_to(dataset).as_posix()
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(
        f"GET /datasets/{served.name}/resolve/main/{path}?left HTTP/1.1\r\nhost: x\r\n"
        f"authorization: Bearer {served.token}\r\n\r\n".encode()
    )
    connection.recv(1000)
    connection.close()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        last = json.loads(served.audit.read_text().splitlines()[-1])
        if last.get("path") == path:
            break
        time.sleep(0.05)
    assert last["path"] == path


class Closing:
    """A connection whose client has left."""

    def is_closing(self) -> bool:
        return True


def test_a_client_who_leaves_before_the_body_is_no_failure(served, caplog):
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/v1/session",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {served.token}".encode())],
        "client": ("127.0.0.1", 1),
        "transport": Closing(),
    }
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(served.app(scope, receive, send))
    assert sent == []
    assert caplog.text == ""
    last = json.loads(served.audit.read_text().splitlines()[-1])
    assert (last["status"], last["bytes"]) == (499, 0)
