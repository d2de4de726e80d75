"""`serve`: what it refuses."""

from __future__ import annotations

import socket

import fsspec


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


def test_a_redirect_needs_a_bucket(cli, dataset, tmp_path):
    ran = cli("serve", dataset, "--redirect", "--port", 0, "--state", tmp_path)
    assert ran.status == 2
    assert "--redirect: no dataset is in a bucket; expected a dataset in a bucket of S3" in ran.err
    assert "leave --redirect out" in ran.err


def test_a_redirect_needs_storage_that_signs_urls(cli, dataset, tmp_path):
    files = {p.relative_to(dataset).as_posix(): p for p in dataset.rglob("*") if p.is_file()}
    memory = fsspec.filesystem("memory")
    for name, file in files.items():
        memory.pipe_file(f"/redirected/{name}", file.read_bytes())
    ran = cli("serve", "memory://redirected", "--redirect", "--port", 0, "--state", tmp_path)
    memory.rm("/redirected", recursive=True)
    assert ran.status == 2
    assert "--redirect: memory://redirected: its storage signs no URLs" in ran.err
