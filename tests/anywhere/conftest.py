"""The converted phantom behind servers of every kind; each server is started once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import SECRET, Place
from servers import azure_connection, azure_server, file_server, gcs_server, s3_server

from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store


@pytest.fixture(scope="session")
def patient_ids(dataset: Path) -> list[str]:
    """Every patient of the phantom, the extended one last."""
    location = Location(dataset)
    table = read_table(location, open_manifest(location), "patients")
    return [str(i) for i in table.column("patient_id").to_pylist()]


@pytest.fixture(scope="session")
def extended(patient_ids: list[str]) -> str:
    """The patient with folds and observers."""
    return patient_ids[-1]


@pytest.fixture(scope="session")
def shard(dataset: Path, extended: str) -> str:
    """The T2w shard of the extended patient, relative to the dataset."""
    store = open_store(Location(dataset), extended)
    return f"patients/{extended}.zarr/{store.arrays['mri/image'].shard_key((0,))}"


@pytest.fixture(scope="session")
def web(dataset: Path) -> Iterator[Place]:
    """The dataset on a web server that lists nothing."""
    pytest.importorskip("aiohttp")
    with file_server(dataset.parent) as (url, traffic):
        yield Place(f"{url}/{dataset.name}", {}, traffic)


@pytest.fixture(scope="session")
def s3_options() -> dict[str, Any]:
    """What it takes to reach the S3 server, but for its address."""
    return {"key": "AKIAIOSFODNN7EXAMPLE", "secret": SECRET}


@pytest.fixture(scope="session")
def empty_s3(s3_options: dict[str, Any]) -> Iterator[Place]:
    """An S3 server with an empty bucket."""
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as (endpoint, traffic):
        options = {**s3_options, "endpoint_url": endpoint}
        s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir("bucket")
        yield Place("s3://bucket/nothing", options, traffic)


@pytest.fixture(scope="session")
def s3(empty_s3: Place, dataset: Path) -> Place:
    """The dataset in an S3 bucket, copied there by ourselves."""
    return _filled(empty_s3.beside("lund-probe"), dataset)


@pytest.fixture(scope="session")
def gcs(dataset: Path) -> Iterator[Place]:
    """The dataset in a bucket of fake-gcs-server, the Google Cloud Storage emulator."""
    with gcs_server() as (endpoint, options):
        yield _filled(
            Place("gs://bucket/lund-probe", {**options, "endpoint_url": endpoint}), dataset
        )


@pytest.fixture(scope="session")
def azure(dataset: Path) -> Iterator[Place]:
    """The dataset in a container of azurite, the Azure storage emulator."""
    with azure_server() as endpoint:
        options = {"connection_string": azure_connection(endpoint)}
        yield _filled(Place("abfs://container/lund-probe", options), dataset)


@pytest.fixture
def memory(dataset: Path) -> Place:
    """The dataset in this process's memory."""
    return _filled(Place("memory://bucket/lund-probe"), dataset)


@pytest.fixture
def disk(dataset: Path) -> Place:
    """The dataset on disk, by a `file://` URL."""
    return Place(dataset.as_uri())


def _filled(place: Place, dataset: Path) -> Place:
    # Google's emulator knows no credentials: anyone can read it.
    report = copy_dataset(Location(dataset), place.location, allow_public=True)
    assert not report.failures
    return place


@pytest.fixture(params=["disk", "memory", "web", "s3", "gcs", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    """The dataset in every place there is."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found
