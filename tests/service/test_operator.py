"""What the operator sees: figures for Prometheus, a page, lines in the terminal, the log."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.callers import new_token
from lundprobe_zarr.service.logs import AccessLog, log_to_stderr
from lundprobe_zarr.service.metrics import _forget_dead
from tests.service.callers import OURS, file_of, get, token_for


@pytest.fixture(scope="module")
def gate(start_for_module, dataset, tmp_path_factory):
    """A service and its tokens: of an operator, and of a reader with a name of HTML."""
    access = tmp_path_factory.mktemp("access") / "access.json"
    operator = token_for(access, "prometheus", operator=True, datasets=[])
    reader = token_for(access, "<b>reader-1</b>")
    return start_for_module({OURS: dataset}, access=str(access)), operator, reader


def samples(text):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_count_requests_and_bytes(gate, dataset):
    served, operator, reader = gate
    size = (dataset / "README.md").stat().st_size
    before = samples(get(served.url, "/metrics", operator).text)
    get(served.url, file_of(OURS), reader)
    get(served.url, file_of(OURS, "nothing"), reader)
    get(served.url, file_of("made/up"), reader)
    get(served.url, file_of(OURS))
    after = samples(get(served.url, "/metrics", operator).text)

    def grown(name, **labels):
        key = (name, *sorted(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    total = "lundprobe_requests_total"
    assert grown(total, dataset=OURS, what="bytes", status="200") == 1
    assert grown(total, dataset=OURS, what="bytes", status="404") == 1
    assert grown(total, dataset="", what="bytes", status="404") == 1, "no label is a client's"
    assert grown(total, dataset="", what="bytes", status="401") == 1
    assert size < grown("lundprobe_sent_bytes_total", dataset=OURS, what="bytes") < size + 500
    assert grown("lundprobe_caller_requests_total", caller="<b>reader-1</b>") == 3
    assert after["lundprobe_running_requests",] == 1, "this one"
    sha = get(served.url, file_of(OURS), reader).headers["x-repo-commit"]
    assert after["lundprobe_dataset_info", ("dataset", OURS), ("sha", sha)] == 1


@pytest.mark.parametrize("path", ["/metrics", "/status"])
def test_figures_are_for_operators(gate, path):
    served, operator, reader = gate
    assert get(served.url, path).status_code == 401
    assert get(served.url, path, new_token()).status_code == 401
    refused = get(served.url, path, reader)
    assert refused.status_code == 403
    assert "--operator" in refused.json()["error"]
    assert get(served.url, path, operator).status_code == 200


def test_the_status_page_shows_the_figures_and_runs_nothing(gate):
    served, operator, reader = gate
    get(served.url, file_of(OURS), reader)
    asked = get(served.url, "/status")
    assert asked.headers["www-authenticate"].startswith("Basic"), "so that a browser asks"
    pair = base64.b64encode(f"me:{operator}".encode()).decode()
    page = get(served.url, "/status", authorization=f"Basic {pair}")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert OURS in page.text
    assert "&lt;b&gt;reader-1&lt;/b&gt;" in page.text
    assert "<b>" not in page.text
    assert "<script" not in page.text
    policy = page.headers["content-security-policy"]
    style = re.search("<style>(.*)</style>", page.text)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_worker_processes_sum_up_their_figures_and_share_limits(dataset, tmp_path):
    access = tmp_path / "access.json"
    operator = token_for(access, "operator", operator=True)
    limited = token_for(access, "limited", limits={"bytes_per_day": 100_000})
    command = [sys.executable, "-m", "lundprobe_zarr", "serve", str(dataset), "--name", OURS]
    command += ["--port", "0", "--access", str(access), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--state", str(tmp_path / "state"), "--access-log", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(x for x in process.stdout if "HF_ENDPOINT" in x).partition("=")[2].strip()
        sent = answered = 0
        for _ in range(200):  # each on a connection of its own: to either process
            answer = get(url, file_of(OURS), limited)
            if answer.status_code == 429:
                break
            sent += len(answer.content)
            answered += 1
        assert answer.status_code == 429
        assert sent < 100_000 + len(answer.content) + 20_000
        found = samples(get(url, "/metrics", operator).text)
        name = "lundprobe_requests_total"
        key = (name, ("dataset", OURS), ("status", "200"), ("what", "bytes"))
        assert found[key] == answered
        assert found["lundprobe_running_requests",] == 1
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    printed = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [p["status"] for p in printed] == [200] * answered + [429, 200]


def printed(form, capfd, **fields):
    visit = Visit("GET", "/datasets/a/b", "192.0.2.1")
    for name, value in ({"status": 200, "caller": "reader-1", "sent": 5000} | fields).items():
        setattr(visit, name, value)
    AccessLog(form).write(visit)
    return capfd.readouterr().out


def test_a_line_a_request_in_color(capfd):
    line = printed("color", capfd)
    assert re.sub(r"\x1b\[\d+m", "", line).split()[1:6] == [
        *("200", "GET", "/datasets/a/b", "5", "kB")
    ]
    assert "\x1b[32m200" in line
    assert "\x1b[31m503" in printed("color", capfd, status=503)


def test_what_a_client_sends_cannot_color_or_break_a_line(capfd):
    token = new_token()
    line = printed("color", capfd, route="/\n\x1b[31m\u202e" + token + "x" * 5000, caller="\x1b[2J")
    assert line.count("\n") == 1
    assert "\x1b[31m" not in line
    assert "\x1b[2J" not in line
    assert "\u202e" not in line
    assert token[14:] not in line
    assert len(line) < 500


def test_json_and_nothing(capfd):
    assert json.loads(printed("json", capfd))["bytes"] == 5000
    assert printed("none", capfd) == ""


def test_a_closed_output_loses_lines_and_no_answer(monkeypatch, capfd):
    def closed(fd, data):
        raise BrokenPipeError

    log = AccessLog("json")
    monkeypatch.setattr(os, "write", closed)
    log.write(Visit("GET", "/", "x"))
    monkeypatch.undo()
    log.write(Visit("GET", "/", "x"))
    assert capfd.readouterr().out == ""


def test_the_log_has_no_token_even_in_a_traceback(capfd):
    token, kept = new_token(), {}
    for name in ("lundprobe_zarr", "uvicorn"):
        log = logging.getLogger(name)
        kept[log] = (list(log.handlers), log.propagate, log.level)
    try:
        log_to_stderr(logging.INFO)
        logging.getLogger("uvicorn.error").info("started with %s", token)
        try:
            raise ValueError(f"/path/{token}")
        except ValueError:
            logging.getLogger("lundprobe_zarr.service").exception("failed")
    finally:
        for log, (handlers, propagate, level) in kept.items():
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
    said = capfd.readouterr().err
    assert "started with lp_" in said
    assert "ValueError: /path/lp_" in said
    assert token[14:] not in said


def test_a_gauge_of_an_ended_process_is_forgotten(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f"gauge_livesum_{pid}.db").write_bytes(b"")
    _forget_dead(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"gauge_livesum_{os.getpid()}.db"]
