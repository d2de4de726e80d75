"""`doctor` says what is there and what is wrong, and shows no secret."""

from __future__ import annotations

import json

import pytest

import lundprobe_zarr
from lundprobe_zarr.cli import doctor as command
from tests.anywhere.servers import file_server
from tests.cli.conftest import Cli

_SECRET = "hf_" + "x" * 30


def found(out: str) -> dict[str, dict[str, object]]:
    return {f"{c['section'].split()[0]}: {c['name']}": c for c in json.loads(out)}


def test_versions_extras_and_limits_are_named(cli: Cli):
    ran = cli("doctor", "--json")
    checks = found(ran.out)
    assert checks["Versions: lundprobe-zarr"]["found"] == lundprobe_zarr.__version__
    assert checks["Extras: serve"]["found"] == "installed"
    assert "dev" not in {c["name"] for c in checks.values()}
    assert "for this process" in str(checks["This: cores"]["found"])
    assert ran.status == int(any(c["wrong"] for c in checks.values()))


def test_credentials_are_named_and_never_shown(cli: Cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(_SECRET)
    monkeypatch.setenv("HF_TOKEN", _SECRET)
    for ran in (cli("doctor"), cli("doctor", "--json")):
        assert "HF_TOKEN" in ran.out
        assert "~/.aws/credentials" in ran.out
        assert _SECRET not in ran.out + ran.err


def test_few_open_files_are_wrong(cli: Cli, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    ran = cli("doctor")
    assert ran.status == 1
    assert "ulimit -n 1024" in ran.out


def test_a_missing_extra_says_what_to_install(cli: Cli, monkeypatch):
    real = command._version
    monkeypatch.setattr(command, "_version", lambda n: None if n == "s3fs" else real(n))
    assert "lacks s3fs: pip install 'lundprobe-zarr[s3]'" in cli("doctor").out


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_server_is_asked_for_ranges(cli: Cli, dataset, takes_ranges):
    with file_server(dataset, takes_ranges=takes_ranges) as (url, _):
        ran = cli("doctor", url, "--json")
    check = found(ran.out)["Dataset: ranges"]
    assert check["wrong"] is not takes_ranges
    assert str(check["found"]).startswith("taken" if takes_ranges else "ignored")
    assert takes_ranges or ran.status == 1


def test_what_cannot_be_reached_is_wrong(cli: Cli, tmp_path):
    ran = cli("doctor", tmp_path)
    assert ran.status == 1
    assert "reading" in ran.out
    assert "lundprobe.json" in ran.out
