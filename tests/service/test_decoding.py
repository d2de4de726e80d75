"""Decoding: in few threads, refused when too much waits, not done for clients who have left."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import pytest
from starlette.requests import ClientDisconnect

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.voxels.decoding import Decoding
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.tiles import Tiles

MB = 1 << 20


class Connection:
    """A request whose client can leave."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self._has_body = True

    async def receive(self):
        if self._has_body:
            self._has_body = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_results_and_errors_come_back():
    async def run():
        decoding = Decoding(1)
        assert await decoding.run(Connection(), lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await decoding.run(Connection(), lambda: 1 / 0)
        assert decoding.pending == 0
        decoding.close()
        with pytest.raises(HttpError, match="ending"):
            await decoding.run(Connection(), lambda: 7)
        assert decoding.pending == 0

    asyncio.run(run())


def test_work_of_a_client_who_has_left_is_not_begun():
    async def run():
        decoding, going, done = Decoding(1), threading.Event(), []
        running = asyncio.ensure_future(decoding.run(Connection(), lambda: going.wait(20)))
        connection = Connection()
        waiting = asyncio.ensure_future(decoding.run(connection, lambda: done.append(1)))
        await asyncio.sleep(0.05)
        connection.left.set()
        with pytest.raises(ClientDisconnect):
            await waiting
        going.set()
        assert await running
        assert await decoding.run(Connection(), lambda: 7) == 7
        assert done == []
        assert decoding.pending == 0
        decoding.close()

    asyncio.run(run())


def test_a_client_may_leave_while_its_work_is_done():
    async def run():
        decoding, begun, going = Decoding(1), threading.Event(), threading.Event()

        def work():
            begun.set()
            going.wait(20)
            raise ValueError("of work that nobody waits for")

        connection = Connection()
        waiting = asyncio.ensure_future(decoding.run(connection, work))
        await asyncio.to_thread(begun.wait, 20)
        connection.left.set()
        with pytest.raises(ClientDisconnect):
            await waiting
        assert decoding.pending > 0  # it still takes memory
        going.set()
        await decoding.run(Connection(), lambda: None)
        assert decoding.pending == 0
        decoding.close()

    asyncio.run(run())


def test_too_much_at_a_time_is_refused():
    async def run():
        decoding, going = Decoding(1, most_pending=100 * MB), threading.Event()
        large = asyncio.ensure_future(
            decoding.run(Connection(), lambda: going.wait(20), 500 * MB)
        )  # alone, anything is admitted
        await asyncio.sleep(0)
        with pytest.raises(HttpError) as refused:
            await decoding.run(Connection(), lambda: None)
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"] == "1"
        going.set()
        await large
        assert await decoding.run(Connection(), lambda: 7) == 7
        decoding.close()

    asyncio.run(run())


def test_a_client_who_leaves_is_in_the_audit_log(start_service, dataset, monkeypatch):
    begun, going, read = threading.Event(), threading.Event(), Tiles.read

    def slow(self, *arguments):
        begun.set()
        assert going.wait(20)
        return read(self, *arguments)

    monkeypatch.setattr(Tiles, "read", slow)
    served = start_service({"lund-probe/standard": dataset})
    patient = Dataset.open(Location(str(dataset))).ids[0]
    path = f"/api/v1/datasets/{served.name}/patients/{patient}/plane?array=mri/dose&n=3"
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        lines = (f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {served.token}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert begun.wait(20)
    until = time.monotonic() + 20
    while not (served.audit.exists() and served.audit.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.02)
    going.set()
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert (line["status"], line["bytes"]) == (499, 0)
    with served.client as client:
        assert client.get(path).status_code == 200
