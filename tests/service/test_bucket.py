"""A dataset in a bucket, served: streamed through or by redirect; failures of the bucket."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.location import Location
from tests.anywhere.servers import s3_server

NAME = "lund-probe/bucket"
SECRET = "not-a-secret-of-anyone"


@pytest.fixture(scope="module")
def bucket(dataset):
    """URL, storage options and traffic of an S3 bucket with the dataset."""
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as (endpoint, traffic):
        options = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": SECRET, "endpoint_url": endpoint}
        s3fs.S3FileSystem(**options).mkdir("served")
        copy_dataset(Location(dataset), Location("s3://served/phantom", options))
        yield "s3://served/phantom", options, traffic


@pytest.fixture(scope="module")
def shard(dataset):
    return largest(dataset)


def largest(dataset: Path) -> tuple[str, bytes]:
    """Path and contents of the largest file of a patient."""
    files = [p for p in (dataset / "patients").rglob("*") if p.is_file()]
    found = max(files, key=lambda p: p.stat().st_size)
    return found.relative_to(dataset).as_posix(), found.read_bytes()


@pytest.fixture(scope="module")
def streamed(start_for_module, bucket):
    url, options, _ = bucket
    return start_for_module({NAME: url}, storage_options=options)


def resolve(served, path, **headers):
    with served.client as client:
        return client.get(f"/datasets/{NAME}/resolve/main/{path}", headers=headers)


def test_bytes_are_those_of_the_folder(streamed, shard, dataset):
    path, contents = shard
    assert resolve(streamed, path).content == contents
    assert resolve(streamed, path, Range="bytes=9-1000").content == contents[9:1001]
    text = (dataset / "lundprobe.json").read_bytes()
    assert resolve(streamed, "lundprobe.json").content == text


def test_a_bucket_that_fails_is_a_503_and_named_in_the_log(streamed, shard, bucket, caplog):
    path, contents = shard
    traffic = bucket[2]
    with traffic.failing(lambda method, name: 503 if name.endswith(path) else None):
        answer = resolve(streamed, path, Range="bytes=0-9")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "served" not in answer.text
    assert "s3://served/phantom" in caplog.text
    assert SECRET not in caplog.text
    assert resolve(streamed, path, Range="bytes=0-9").content == contents[:10]


def test_a_redirect_leads_to_the_bucket_without_the_token(start_service, bucket, shard):
    path, contents = shard
    url, options, _ = bucket
    served = start_service({NAME: url}, storage_options=options, redirect=True)
    first = resolve(served, path, Range="bytes=5-104")
    assert first.status_code == 302
    assert SECRET not in first.headers["location"]
    assert served.token not in first.headers["location"]
    followed = httpx.get(first.headers["location"], headers={"Range": "bytes=5-104"})
    assert followed.content == contents[5:105]
    assert '"bytes": 100' in served.audit.read_text().splitlines()[-1]
    with served.client as client:
        head = client.head(f"/datasets/{NAME}/resolve/main/{path}")
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(contents))


def test_a_replaced_object_is_refused(start_service, bucket, one_patient):
    path, contents = largest(one_patient / "dataset")
    _, options, _ = bucket
    location = Location("s3://served/changing", options)
    copy_dataset(Location(one_patient / "dataset"), location)
    served = start_service({NAME: location.url}, storage_options=options)
    assert resolve(served, path, Range="bytes=0-9").content == contents[:10]
    location.write(path, contents[::-1])
    assert resolve(served, path, Range="bytes=0-9").status_code == 503
