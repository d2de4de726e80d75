"""Limits by caller: requests at a time and bytes a day, over processes and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from lundprobe_zarr.service.access.callers import Caller, Limits
from lundprobe_zarr.service.access.limits import LimitKeeper
from lundprobe_zarr.service.http.answers import HttpError
from tests.service.callers import OURS, file_of, get, token_for

TWO = Caller("reader-1", limits=Limits(requests=2), key="k1")
#: Holds a request of a caller, in a process of its own, until it is killed.
_HOLD = """
import sys, time
from pathlib import Path
from lundprobe_zarr.service.access.callers import Caller, Limits
from lundprobe_zarr.service.access.limits import LimitKeeper
keeper = LimitKeeper(Path(sys.argv[1]))
with keeper.request(Caller("reader-1", limits=Limits(2, 10**9), key="k1")) as account:
    account.send(1000)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that runs a request of the caller k1, with its counters in `tmp_path`."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_requests_at_a_time(tmp_path):
    keeper = LimitKeeper(tmp_path)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(keeper.request(TWO))
        with pytest.raises(HttpError, match="2 requests running") as error, keeper.request(TWO):
            pass
        assert (error.value.status, error.value.headers["Retry-After"]) == (429, "1")
        other = Caller("reader-2", limits=Limits(requests=1), key="k2")
        with keeper.request(other), keeper.request(Caller("free")):
            pass
    with keeper.request(TWO):
        pass


def test_processes_count_together_and_a_killed_one_no_more(tmp_path, holder):
    keeper = LimitKeeper(tmp_path)
    with keeper.request(TWO), pytest.raises(HttpError, match="running"), keeper.request(TWO):
        pass
    keeper.close()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    keeper = LimitKeeper(tmp_path)  # as a worker process that takes its place
    with keeper.request(TWO), keeper.request(TWO) as account:
        day = int(time.time()) // 86_400
        assert account.bytes_on(day) == 1000, "what was sent stays counted"
        assert account.bytes_on(day - 1) == 0


def test_bytes_of_a_day(start_service, dataset, tmp_path):
    access, state = tmp_path / "access.json", tmp_path / "state"
    size = (dataset / "README.md").stat().st_size
    token = token_for(access, "reader-1", limits={"bytes_per_day": size + 1})
    settings = {"access": str(access), "state": str(state)}
    served = start_service({OURS: dataset}, **settings)
    for _ in range(2):  # one that has begun is sent to its end
        assert get(served.url, file_of(OURS), token).status_code == 200
    again = start_service({OURS: dataset}, **settings)
    for one in (served, again):  # the other is as one started again
        refused = get(one.url, file_of(OURS), token)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert "kB of this UTC day" in refused.json()["error"]


def test_a_head_costs_nothing(start_service, dataset, tmp_path):
    token = token_for(tmp_path / "access.json", "reader-1", limits={"bytes_per_day": 1})
    served = start_service({OURS: dataset}, access=str(tmp_path / "access.json"))
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(3):
        assert httpx.head(served.url + file_of(OURS), headers=headers).status_code == 200


def test_a_new_day_begins_at_nothing(tmp_path, monkeypatch):
    keeper = LimitKeeper(tmp_path)
    caller = Caller("reader-1", limits=Limits(bytes_per_day=10), key="k")
    with keeper.request(caller) as account:
        account.send(10)
    with pytest.raises(HttpError, match="UTC day"), keeper.request(caller):
        pass
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    with keeper.request(caller) as account:
        account.send(3)
        assert account.bytes_on(int(now) // 86_400 + 1) == 3


def test_a_request_that_fails_is_counted_no_more(tmp_path):
    keeper = LimitKeeper(tmp_path)
    for _ in range(5):
        with pytest.raises(RuntimeError), keeper.request(TWO):
            raise RuntimeError
    with keeper.request(TWO) as account:
        assert account.running() == 1


def test_over_http_the_third_at_a_time_is_refused(start_service, dataset, tmp_path):
    """Two answers that stand still hold both places; the third request gets 429."""
    token = token_for(tmp_path / "access.json", "reader-1", limits={"requests": 2})
    served = start_service({OURS: dataset}, access=str(tmp_path / "access.json"))
    keeper = served.app._service.limits
    caller = served.app._service.access._holder(token)
    release = threading.Event()

    def stand_still():
        with keeper.request(caller):
            release.wait(20)

    threads = [threading.Thread(target=stand_still) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while get(served.url, file_of(OURS), token).status_code != 429:
            time.sleep(0.02)
    finally:
        release.set()
        for thread in threads:
            thread.join()
    assert get(served.url, file_of(OURS), token).status_code == 200
