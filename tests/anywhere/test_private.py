"""Nothing is written where anyone can read it, unless told so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import SECRET, Place

from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.storage.access import require_private
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.urls import anonymous_options


@pytest.fixture(scope="module")
def public(empty_s3: Place) -> Place:
    """A bucket of which anyone may read the folder `open`."""
    s3fs = pytest.importorskip("s3fs")
    fs = s3fs.S3FileSystem(**empty_s3.options, skip_instance_cache=True)
    fs.mkdir("public")
    allowed = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    policy = {
        "Version": "2012-10-17",
        "Statement": [{**allowed, "Resource": "arn:aws:s3:::public/open/*"}],
    }
    fs.call_s3("put_bucket_policy", Bucket="public", Policy=json.dumps(policy))
    return Place("s3://public/open/d", empty_s3.options, empty_s3.traffic)


def everything(place: Place) -> dict[str, int]:
    return place.location.find("")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def test_a_copy_to_a_public_place_is_refused_and_leaves_nothing(
    dataset: Path, public: Place
) -> None:
    with pytest.raises(UsageError, match=r"s3://public/open/d: anyone can read.*--allow-public"):
        copy_dataset(Location(dataset), public.location)
    assert everything(public) == {}


def test_it_goes_there_if_told_so(one_patient: Path, public: Place) -> None:
    dataset, place = one_patient / "dataset", public.beside("meant")
    assert not copy_dataset(Location(dataset), place.location, allow_public=True).failures
    anonymous = place.location.anonymous()
    assert anonymous is not None
    assert anonymous.read(MANIFEST_NAME) == (dataset / MANIFEST_NAME).read_bytes()


def test_private_buckets_are_taken_and_nothing_is_left(empty_s3: Place, public: Place) -> None:
    for place in (empty_s3.beside("mine"), Place("s3://public/closed", public.options)):
        require_private(place.location)
        assert everything(place) == {}


def test_what_a_killed_process_left_goes_and_what_another_needs_stays(empty_s3: Place) -> None:
    place = empty_s3.beside("asked")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        place.location.write(f"probe-{socket.gethostname()}-{process}-0123abcd", b"?")
    place.location.write("probe-elsewhere-1-0123abcd", b"?")
    require_private(place.location)
    assert sorted(everything(place)) == sorted(
        ["probe-elsewhere-1-0123abcd", f"probe-{socket.gethostname()}-{os.getpid()}-0123abcd"]
    )


def test_a_conversion_to_a_public_place_is_refused_before_any_patient(
    phantom_source: Path, public: Place, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="anyone can read"):
        convert(take_inventory(phantom_source), public.location, Options(scratch=tmp_path))
    assert everything(public) == {}


def test_commands_say_so(
    one_patient: Path,
    public: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LUNDPROBE_STORAGE_OPTIONS", json.dumps(public.options))
    dataset = one_patient / "dataset"
    assert run("copy", dataset, public.url, "--source-options", "{}") == 2
    assert run("convert", one_patient / "source", public.url) == 2
    said = capsys.readouterr()
    assert said.err.count("controlled access") == 2
    assert SECRET not in said.err
    place = public.beside("by-command")
    assert run("copy", dataset, place.url, "--allow-public", "--source-options", "{}") == 0


def test_disks_and_memory_are_not_asked(tmp_path: Path) -> None:
    for location in (Location(tmp_path), Location("memory://x")):
        assert location.anonymous() is None
        require_private(location)
    assert list(tmp_path.iterdir()) == []


ENDPOINT = {"endpoint_url": "https://minio.example.org"}
CONNECTION = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=c2VjcmV0;"


@pytest.mark.parametrize(
    ("protocol", "options", "expected"),
    [
        ("s3", ENDPOINT | {"key": "k", "secret": "s", "token": "t"}, ENDPOINT | {"anon": True}),
        ("gs", {"project": "p", "token": "/a/key.json"}, {"project": "p", "token": "anon"}),
        ("az", {"account_name": "a", "account_key": "k"}, {"account_name": "a", "anon": True}),
        ("abfs", {"connection_string": CONNECTION}, {"account_name": "mine", "anon": True}),
        ("hf", {"token": "hf_x"}, {"token": False}),
        ("sftp", {"password": "x"}, None),
    ],
)
def test_no_credential_goes_along(
    protocol: str, options: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert anonymous_options(protocol, options) == expected
