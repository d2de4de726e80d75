"""Hostile requests against a real server: no failure, nothing outside, nothing without a grant."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import unquote

import pytest
from attacks import Attack, attacks

from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.service.access.access_file import Grant, add_token
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.core import OPEN_PATHS

MINE, OTHER = "lund-probe/mine", "lund-probe/other"
CANARY = "canary-outside-of-every-dataset"


@pytest.fixture(scope="module")
def halves(dataset, tmp_path_factory):
    """Two datasets without a common patient, and files beside them that nobody may see."""
    folder = tmp_path_factory.mktemp("halves")
    ids = sorted(p.stem for p in (dataset / "patients").iterdir())
    kept = {MINE: ids[:2], OTHER: ids[2:]}
    for name, patients in kept.items():
        copy = shutil.copytree(dataset, folder / name.rpartition("/")[2])
        for store in (copy / "patients").iterdir():
            if store.stem not in patients:
                shutil.rmtree(store)
        finalise(copy, rebuild=True)
        (copy / ".conversion").mkdir(exist_ok=True)
        (copy / ".conversion" / "notes.json").write_text(CANARY)
        (copy / "patients" / "leftover.txt").write_text(CANARY)
    (folder / "secret.txt").write_text(CANARY)
    return folder, kept


@pytest.fixture(scope="module")
def guarded(start_for_module, halves, tmp_path_factory):
    """A service of both, and three tokens: for one, for its tables only, for the other."""
    folder, _ = halves
    access = tmp_path_factory.mktemp("access") / "tokens.json"
    both, tables = frozenset(Kind), frozenset({Kind.TABLES})
    tokens = {
        "mine": add_token(access, "mine", None, Grant(datasets=(MINE,), kinds=tuple(both))),
        "tables": add_token(access, "tables", None, Grant(datasets=(MINE,), kinds=tuple(tables))),
        "other": add_token(access, "other", None, Grant(datasets=(OTHER,), kinds=tuple(both))),
    }
    datasets = {MINE: folder / "mine", OTHER: folder / "other"}
    served = start_for_module(datasets, access=str(access), token_sha256=None)
    return served, tokens


class Connection:
    """A raw connection that reads answers whole, and opens anew where the server closed it."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        self._socket: socket.socket | None = None

    def ask(self, attack: Attack) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer; status 0 if the connection was just closed."""
        request = attack.encode(b"127.0.0.1")
        for _ in range(2):
            fresh = self._socket is None
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=60)
            try:
                self._socket.sendall(request)
                answer = self._read(attack.method)
            except (BrokenPipeError, ConnectionResetError):
                answer = None
            if answer is not None:
                return answer
            self.close()
            if fresh:
                break
        return 0, b"", b""

    def _read(self, method: str) -> tuple[int, bytes, bytes] | None:
        assert self._socket is not None
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._socket.recv(1 << 16)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        status = int(head.split(b" ", 2)[1])
        size = 0
        for line in lower.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        if b"transfer-encoding: chunked" in lower:
            while not body.endswith(b"0\r\n\r\n"):
                body += self._socket.recv(1 << 16)
        elif method != "HEAD" and status not in (204, 304):
            while len(body) < size:
                body += self._socket.recv(1 << 20)
        if b"connection: close" in lower:
            self.close()
        return status, head, body

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def check(attack: Attack, answer: tuple[int, bytes, bytes], ids, voxels: bytes) -> None:
    """An answer to any request gives nothing away and says that nothing failed."""
    status, head, body = answer
    said = f"{attack} -> {head!r} {body[:300]!r}"
    assert status < 500 or status == 503, said
    assert CANARY.encode() not in body, said
    assert b"root:x:" not in body, said
    assert b"Traceback" not in body, said
    assert b"set-cookie: x" not in head.lower(), said
    if attack.token not in ids:
        path = attack.target.partition(b"?")[0].decode()
        assert status in (0, 400, 401, 431) or path in OPEN_PATHS or len(body) < 2000, said
        assert status != 206, said
        assert voxels not in body, said
    everyone = {i for hidden, _ in ids.values() for i in hidden}
    hidden, visible = ids.get(attack.token, (everyone, True))
    # An error may repeat what was asked for; URLs lose tabs and line ends when they are parsed.
    asked = "".join(c for c in unquote(attack.target.decode()) if c.isprintable())
    for patient_id in hidden:
        assert patient_id.encode() not in body or patient_id in asked, said
    if not visible:
        assert voxels not in body, said


def storm(guarded, halves, seed: int, count: int) -> int:
    """Make requests, check each answer, and return how many had data."""
    served, tokens = guarded
    folder, kept = halves
    paths = [
        p.relative_to(folder / half).as_posix()
        for half in ("mine", "other")
        for p in sorted((folder / half).rglob("*"))
        if p.is_file()
    ]
    shard = max(Path(folder / "mine" / "patients").rglob("*"), key=lambda p: p.stat().st_size)
    voxels = shard.read_bytes()[1000:1064]
    ids = {
        tokens["mine"]: (kept[OTHER], True),
        tokens["tables"]: (kept[OTHER], False),
        tokens["other"]: (kept[MINE], True),
    }
    wrong = [None, "", "lp_" + "A" * 43, tokens["mine"][:-1], tokens["mine"] + "x", "x" * 5000]
    connection = Connection(served.url)
    given = 0
    for attack in attacks(seed, count, [MINE, OTHER, "no/such"], paths, [*ids, *ids, *wrong]):
        answer = connection.ask(attack)
        check(attack, answer, ids, voxels)
        given += answer[0] in (200, 206)
    connection.close()
    return given


def test_two_thousand_hostile_requests(guarded, halves):
    assert storm(guarded, halves, seed=0, count=2_000) > 20


@pytest.mark.slow
def test_fifty_thousand_hostile_requests(guarded, halves):
    seed = int(os.environ.get("LUNDPROBE_HOSTILE_SEED", "1"))
    assert storm(guarded, halves, seed=seed, count=50_000) > 500
