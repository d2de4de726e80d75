"""The audit log: what its lines hold, that none is lost, and that nothing is given without one."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.audit import Audit, Visit
from lundprobe_zarr.service.access.audit_log import SUMMARY, read_audit
from lundprobe_zarr.service.access.callers import new_token
from lundprobe_zarr.sql.session import execute
from tests.service.callers import OURS, file_of, get, token_for


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def visit(path="README.md", **fields):
    found = Visit("GET", f"/datasets/{OURS}/resolve/main/{path}", "192.0.2.1")
    for name, value in ({"path": path, "status": 200, "sent": 10} | fields).items():
        setattr(found, name, value)
    return found


@pytest.fixture(scope="module")
def big(dataset, tmp_path_factory):
    """A copy of the phantom whose README is larger than any buffer of a connection."""
    copy = shutil.copytree(dataset, tmp_path_factory.mktemp("big") / "copy")
    with (copy / "README.md").open("ab") as file:
        file.write(b"x" * (48 << 20))
    return copy


def test_a_line_says_who_asked_for_what(start_service, dataset, tmp_path):
    token = token_for(tmp_path / "access.json", "reader-1")
    served = start_service({OURS: dataset}, access=str(tmp_path / "access.json"))
    get(served.url, file_of(OURS) + f"?token={token}&x=1", token, range="bytes=0-9")
    (line,) = lines(served.audit)
    assert line.pop("time")[:4] == time.strftime("%Y", time.gmtime())
    assert line.pop("ms") > 0
    assert len(line.pop("sha")) == 40
    assert line == {
        "caller": "reader-1",
        "address": "127.0.0.1",
        "method": "GET",
        "route": file_of(OURS),
        "dataset": OURS,
        "path": "README.md",
        "range": "0-9",
        "status": 206,
        "bytes": 10,
    }
    assert served.audit.stat().st_mode & 0o777 == 0o600


def test_a_line_is_one_line_is_bounded_and_holds_no_token(served):
    token = new_token()
    before = served.audit.stat().st_size
    get(served.url, "/api/x%0a%1b%5b2J%00" + "y" * 20_000)
    get(served.url, f"/api/{token}")
    get(served.url, "/api/" + "y" * (2_000 - 25) + token)
    added = served.audit.read_bytes()[before:].decode()
    assert len(added.splitlines()) == 3
    assert max(map(len, added.splitlines())) < 3_000
    assert "\x1b" not in added
    assert token[14:20] not in added


def test_no_line_for_what_is_open_to_all(served):
    before = served.audit.stat().st_size
    assert get(served.url, "/healthz").status_code == 200
    assert served.audit.stat().st_size == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_nothing_is_given_that_cannot_be_recorded(start_service, dataset, big, caplog):
    for place in (dataset, big):
        served = start_service({OURS: place}, audit="/dev/full")
        answer = get(served.url, file_of(OURS), served.token)
        assert answer.status_code == 503
        assert "audit log" in answer.json()["error"]
        assert answer.headers["retry-after"]
        assert get(served.url, "/nowhere", served.token).status_code == 503
        assert get(served.url, "/healthz").status_code == 200
    assert not [r for r in caplog.records if r.exc_info], "said once, and not as a failure of ours"


def test_a_log_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--audit"):
        Audit(tmp_path / "file" / "audit.jsonl")


def test_a_client_that_leaves_is_recorded_with_what_it_got(start_service, big):
    served = start_service({OURS: big})
    size = (big / "README.md").stat().st_size
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        asked = f"GET {file_of(OURS)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}"
        client.sendall(f"{asked}\r\n\r\n".encode())
        client.recv(100_000)
    for _ in range(100):
        if len(lines(served.audit)) == 2:
            break
        time.sleep(0.05)
    begun, ended = lines(served.audit)
    assert (begun["event"], begun["status"], begun["id"]) == ("begun", 200, ended["id"])
    assert ended["status"] == 499
    assert 100_000 <= ended["bytes"] < size


class Closing(asyncio.Transport):
    """The connection of a client who has left."""

    def is_closing(self):
        return True


def test_a_client_that_leaves_is_no_failure_of_the_service(start_service, dataset, caplog):
    served = start_service({OURS: dataset})

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        raise AssertionError(message)

    header = (b"authorization", f"Bearer {served.token}".encode())
    for path in ("/api/datasets", f"/api/datasets/{OURS}", file_of(OURS)):
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {
            "query_string": b"",
            "headers": [header],
            "client": ("192.0.2.1", 1),
            "transport": Closing(),
        }
        asyncio.run(served.app(scope, receive, send))
    assert [line["status"] for line in lines(served.audit)] == [499, 499, 499]
    assert not caplog.records


def test_a_long_answer_that_ends_has_one_line_more(start_service, big):
    served = start_service({OURS: big})
    size = (big / "README.md").stat().st_size
    assert len(get(served.url, file_of(OURS), served.token).content) == size
    assert [line["bytes"] for line in lines(served.audit)][1:] == [size]
    table, _ = read_audit([served.audit])
    assert table.num_rows == 1


def test_a_new_day_begins_a_new_file_once_for_all_processes(tmp_path):
    file = tmp_path / "audit.jsonl"
    processes = [Audit(file) for _ in range(4)]
    for number, audit in enumerate(processes):
        audit.write(visit(f"before-{number}"))
    yesterday = time.time() - 86_400
    os.utime(file, (yesterday, yesterday))
    for audit in processes:
        audit._day -= 1  # as if it had been opened then
    threads = [
        threading.Thread(target=lambda a=a: [a.write(visit("after")) for _ in range(50)])
        for a in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    old = tmp_path / f"audit-{time.strftime('%Y-%m-%d', time.gmtime(yesterday))}.jsonl"
    assert sorted(tmp_path.iterdir()) == sorted([file, old])
    found = [line["path"] for line in (*lines(old), *lines(file))]
    assert sum(path.startswith("before") for path in found) == 4
    assert found.count("after") == 200
    assert len(lines(old)) <= 4 + len(processes), "at most the lines written at that moment"


def test_a_log_of_that_day_is_not_overwritten(tmp_path):
    file = tmp_path / "audit.jsonl"
    yesterday = time.time() - 86_400
    day = time.strftime("%Y-%m-%d", time.gmtime(yesterday))
    (tmp_path / f"audit-{day}.jsonl").write_text("kept\n")
    file.write_text("old\n")
    os.utime(file, (yesterday, yesterday))
    Audit(file).close()
    assert (tmp_path / f"audit-{day}.jsonl").read_text() == "kept\n"
    assert (tmp_path / f"audit-{day}-2.jsonl").read_text() == "old\n"
    assert file.read_text() == ""


def test_a_log_that_somebody_moved_begins_anew(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(visit("one"))
    (tmp_path / "audit.jsonl").rename(tmp_path / "moved")
    audit.write(visit("two"))
    assert [line["path"] for line in lines(tmp_path / "audit.jsonl")] == ["two"]


def test_a_killed_service_has_lost_no_line_that_was_answered(dataset, tmp_path):
    log, token_file = tmp_path / "audit.jsonl", tmp_path / "access.json"
    token = token_for(token_file, "reader-1")
    command = [sys.executable, "-m", "lundprobe_zarr", "serve", str(dataset), "--name", OURS]
    command += ["--port", "0", "--access", str(token_file), "--audit", str(log)]
    process = subprocess.Popen(
        [*command, "--state", str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    )
    try:
        url = next(line for line in process.stdout if "HF_ENDPOINT" in line).partition("=")[2]
        answered = []

        def read():
            with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as client:
                try:
                    for number in range(100_000):
                        path = f"{file_of(OURS)}?n={number}"
                        answer = client.get(
                            url.strip() + path, headers={"Range": f"bytes=0-{number}"}
                        )
                        answered.append(len(answer.content))
                except httpx.HTTPError:
                    return

        for _ in range(100):
            try:
                httpx.get(f"{url.strip()}/healthz")
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(answered) < 150:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    written = [line["bytes"] for line in lines(log)]
    for size in set(answered):
        assert written.count(size) >= answered.count(size)
    assert len(written) - len(answered) <= 3, "those whose answer was on its way"


def test_logs_are_summed_up_by_caller_and_patient(dataset, tmp_path):
    patients = sorted(p.stem for p in (dataset / "patients").iterdir())[:2]
    store = [f"patients/{p}.zarr/zarr.json" for p in patients]
    audit = Audit(tmp_path / "audit.jsonl")
    given = [
        ("reader-1", "README.md", 200, 5),
        ("reader-1", store[0], 206, 100),
        ("reader-1", store[0], 200, 200),
        ("reader-2", store[1], 302, 70),
        ("reader-2", store[0], 403, 90),
        ("reader-2", store[0], 304, 0),
        ("reader-2", store[0], 503, 90),
    ]
    for caller, path, status, sent in given:
        audit.write(visit(path, caller=caller, dataset=OURS, status=status, sent=sent))
    audit.begin(visit(store[1], caller="reader-3", dataset=OURS, sent=40))
    left = visit(store[1], caller="reader-3", dataset=OURS, sent=40)
    audit.begin(left)
    left.status, left.sent = 499, 30
    audit.write(left)
    packed = tmp_path / "old.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "audit.jsonl").read_bytes()))
    table, damaged = read_audit([tmp_path / "audit.jsonl", tmp_path / "audit.jsonl"])
    assert not damaged
    assert read_audit([packed])[0].equals(table)
    found = execute(SUMMARY, [SUMMARY], {"audit": table}).to_pylist()
    rows = [(r["caller"], r["patient_id"], r["content"], r["requests"], r["cut"]) for r in found]
    assert rows == [
        ("reader-1", None, "tables", 1, 0),
        ("reader-1", patients[0], "voxels", 2, 0),
        ("reader-2", patients[1], "voxels", 1, 0),
        ("reader-3", patients[1], "voxels", 2, 1),
    ]
    assert [int(r["bytes"]) for r in found] == [5, 300, 70, 70]
    assert all(r["first"] <= r["last"] for r in found)


def test_a_list_of_a_patients_files_is_no_reading_of_voxels(dataset, tmp_path):
    store = f"patients/{min(p.stem for p in (dataset / 'patients').iterdir())}.zarr"
    audit = Audit(tmp_path / "audit.jsonl")
    for call in ("tree", "paths-info"):
        route = f"/api/datasets/{OURS}/{call}/main/{store}"
        audit.write(visit(store, route=route, caller="reader-1", dataset=OURS))
    found, _ = read_audit([tmp_path / "audit.jsonl"])
    assert found.column("patient_id").null_count == 2
    assert found.column("content").to_pylist() == ["tables", "tables"]


def test_a_text_that_is_no_unicode_makes_no_damaged_line(tmp_path):
    audit = Audit(tmp_path / "audit.jsonl")
    audit.write(visit(dataset=OURS, sql="SELECT '\ud800'"))
    found, damaged = read_audit([tmp_path / "audit.jsonl"])
    assert not damaged
    assert found.column("sql").to_pylist() == ["SELECT '\\ud800'"]


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path):
    file = tmp_path / "audit.jsonl"
    audit = Audit(file)
    audit.write(visit())
    with file.open("a") as log:
        log.write('{"time": "2026-\n[1]\n{"time": "yesterday", "status": 200}\n{}\n')
    audit.write(visit())
    table, damaged = read_audit([file])
    assert table.num_rows == 2
    assert damaged == [f"{file}: line {n}" for n in (2, 3, 4, 5)]
    with pytest.raises(UsageError, match="No such file"):
        read_audit([tmp_path / "none"])
