"""`lundprobe-zarr view`: a link that opens the page once, for one browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import httpx
import pytest
from test_serve_process import wait

from lundprobe_zarr.service.access.session import cookie_name
from lundprobe_zarr.service.entry import ENTRY_OPTION
from lundprobe_zarr.sql.worker import SqlWorker
from tests.service.conftest import NAME


@pytest.fixture(scope="module")
def viewed(dataset, tmp_path_factory):
    """URL of a service that `view` started, and its link."""
    command = [sys.executable, "-m", "lundprobe_zarr", "view", str(dataset), "--no-browser"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = re.search(
            r"Open ((http://127\.0\.0\.1:\d+)/enter\?code=\S+)", process.stdout.readline()
        )
        assert found is not None
        try:
            wait(found[2])
            yield found[2], found[1]
        finally:
            process.terminate()
            process.wait(60)


def test_the_link_opens_the_page_once(viewed):
    url, link = viewed
    patients = f"{url}/api/whoami-v2"
    assert httpx.get(patients).status_code == 401
    assert httpx.get(link + "x").status_code == 403
    with httpx.Client() as browser:
        entered = browser.get(link)
        assert (entered.status_code, entered.headers["location"]) == (303, "./")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert browser.get(patients).status_code == 200
        assert browser.get(link).headers["location"] == "./"  # the browser that was let in
    assert "lp_" not in entered.headers["location"]
    again = httpx.get(link)
    assert again.status_code == 403
    assert "once" in again.json()["error"]
    assert "set-cookie" not in again.headers


def test_another_s_cookie_is_no_way_in(viewed):
    url, _ = viewed
    name = cookie_name(url)
    for cookie in (f"{name}=lp_wrong", "session=x", f"{name}", "a b;;=", f'{name}="'):
        answer = httpx.get(f"{url}/api/whoami-v2", headers={"Cookie": cookie})
        assert answer.status_code == 401


def test_the_processes_for_sql_start_before_the_page_is_opened(start_service, dataset, monkeypatch):
    started = []
    monkeypatch.setattr(SqlWorker, "prepare", lambda worker: started.append(worker))
    start_service({NAME: dataset})
    assert started == []
    start_service({NAME: dataset}, options={ENTRY_OPTION: {"key": "k", "token": "t"}})
    assert len(set(map(id, started))) == 3


def test_a_service_without_a_code_has_no_entry(served):
    assert httpx.get(f"{served.url}/enter?code=x").status_code == 404
