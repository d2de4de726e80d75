"""`serve`: what it refuses."""

from __future__ import annotations

import socket


def test_a_port_that_is_taken(cli, dataset, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = cli("serve", dataset, "--port", port, "--state", tmp_path)
    assert ran.status == 2
    assert f"port {port} is taken" in ran.err
    assert "--port" in ran.err


def test_what_is_no_dataset(cli, tmp_path):
    ran = cli("serve", tmp_path, "--port", 0, "--state", tmp_path)
    assert ran.status == 3
    assert "lundprobe.json: not there" in ran.err


def test_a_location_of_nginx_is_a_path(cli, dataset, tmp_path):
    ran = cli("serve", dataset, "--accel", "files", "--port", 0, "--state", tmp_path)
    assert ran.status == 2
    assert "expected a path, such as /_files" in ran.err
