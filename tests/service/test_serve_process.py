"""`lundprobe-zarr serve` as a process: what it prints, several workers, its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

NAME = "phantom/standard"


@contextmanager
def serving(
    dataset: Path, folder: Path, *options: str, stderr: int | None = None
) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """URL, token and process of a service; ends it."""
    command = [
        sys.executable, "-m", "lundprobe_zarr", "serve", str(dataset), "--port", "0",
        "--state", str(folder / "state"), "--audit", str(folder / "audit.jsonl"), *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "HF_TOKEN" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        url = re.search(r"HF_ENDPOINT=(\S+)", said)
        token = re.search(r"HF_TOKEN=(\S+)", said)
        assert url is not None
        assert token is not None
        try:
            wait(url[1])
            yield url[1], token[1], process
        finally:
            process.terminate()
            process.wait(60)


def wait(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthz", timeout=5)
            return
        except httpx.TransportError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture(scope="module")
def shard(dataset):
    files = [p for p in Path(dataset, "patients").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size).relative_to(dataset).as_posix()


def test_one_command_serves_and_says_how_to_use_it(dataset, tmp_path, shard):
    with serving(dataset, tmp_path) as (url, token, process):
        path = f"{url}/datasets/{NAME}/resolve/main/{shard}"
        assert httpx.get(path).status_code == 401
        answer = httpx.get(path, headers={"Authorization": f"Bearer {token}"})
        assert answer.content == (dataset / shard).read_bytes()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert token not in (tmp_path / "audit.jsonl").read_text()


def test_workers_share_the_work_and_the_log(dataset, tmp_path, shard):
    with serving(dataset, tmp_path, "--workers", "2") as (url, token, process):
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(20):  # a connection each, so that both get some
            answer = httpx.get(f"{url}/datasets/{NAME}/resolve/main/{shard}", headers=headers)
            assert answer.status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    lines = [x for x in (tmp_path / "audit.jsonl").read_text().splitlines() if shard in x]
    assert len(lines) == 20


@pytest.mark.parametrize("who", ["the first process", "all of them"])
def test_workers_that_decoded_end_without_a_warning(dataset, tmp_path, who):
    patient = min(p.stem for p in Path(dataset, "patients").iterdir())
    with serving(dataset, tmp_path, "--workers", "2", stderr=subprocess.PIPE) as service:
        url, token, process = service
        for n in range(16):  # a connection each, so that both decode
            plane = f"{url}/api/v1/datasets/{NAME}/patients/{patient}/plane?array=mri/dose&n={n}"
            answer = httpx.get(plane, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200, answer.text
        if who == "all of them":  # as when a terminal's group ends
            for worker in psutil.Process(process.pid).children():
                worker.terminate()
        process.terminate()
        _, printed = process.communicate(timeout=30)  # of multiprocessing's tracker too
        assert process.returncode == 0
    assert printed == ""


def test_a_request_may_end_after_sigterm(dataset, tmp_path):
    size = 40_000_000
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "phantom"
    subprocess.run(["cp", "-r", str(dataset), str(copy)], check=True)
    (copy / "README.md").write_bytes(b"x" * size)  # more than sockets hold
    with serving(copy, tmp_path) as (url, token, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(
                f"GET /datasets/{NAME}/resolve/main/README.md HTTP/1.1\r\nhost: x\r\n"
                f"authorization: Bearer {token}\r\n\r\n".encode()
            )
            received = len(connection.recv(1000))
            process.terminate()
            time.sleep(0.5)
            assert process.poll() is None
            while data := connection.recv(1 << 20):
                received += len(data)
        assert received > size
        assert process.wait(30) in (0, -signal.SIGTERM)
