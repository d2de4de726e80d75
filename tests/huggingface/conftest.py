"""The converted phantom for `datasets`, offline, with a cache of its own and servers that count."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by datasets when it is imported: no test may reach the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.location import Location, Range
from tests.anywhere.servers import Traffic, file_server, s3_server


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `datasets` keeps what it prepares: not in the home of whoever runs the tests."""
    import datasets

    folder = tmp_path_factory.mktemp("hf-cache")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    datasets.config.DOWNLOADED_DATASETS_PATH = folder / "downloads"
    datasets.disable_progress_bars()
    return folder


@pytest.fixture(scope="session")
def manifest(dataset: Path) -> str:
    """Path of the dataset's manifest: what `data_files` takes."""
    return str(dataset / "lundprobe.json")


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> lp.Cohort:
    return lp.open_cohort(dataset)


@pytest.fixture(scope="session")
def lacking(cohort: lp.Cohort) -> str:
    """A patient without a penile bulb."""
    return cohort.where("missing_PenileBulb")[0].patient_id


@pytest.fixture(scope="session")
def web(dataset: Path) -> Iterator[tuple[str, Traffic]]:
    """URL of the dataset on a web server, and its traffic."""
    pytest.importorskip("aiohttp")
    with file_server(dataset.parent) as (url, traffic):
        yield f"{url}/{dataset.name}", traffic


@pytest.fixture(scope="session")
def bucket(dataset: Path) -> Iterator[tuple[str, dict[str, Any], Traffic]]:
    """URL of the dataset in an S3 bucket, storage options, and the server's traffic."""
    pytest.importorskip("moto.moto_server.werkzeug_app")
    with s3_server() as (endpoint, traffic):
        yield "s3://my-bucket/lund-probe", _fill_bucket(endpoint, dataset), traffic


@pytest.fixture(scope="session")
def fill_bucket() -> Callable[[str, Path], dict[str, Any]]:
    """Copies a dataset to s3://my-bucket/lund-probe of a server; returns options to read it."""
    return _fill_bucket


def _fill_bucket(endpoint: str, dataset: Path) -> dict[str, Any]:
    s3fs = pytest.importorskip("s3fs")
    options = {"key": "testing", "secret": "not-a-secret", "endpoint_url": endpoint}
    bucket = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    if not bucket.exists("my-bucket"):  # all moto servers of a process have the same
        bucket.mkdir("my-bucket")
    report = copy_dataset(Location(dataset), Location("s3://my-bucket/lund-probe", options))
    assert not report.failures
    return options


class Reads(list[str]):
    """Names of the objects read, as they are read."""

    @property
    def voxels(self) -> list[str]:
        """Those that hold voxels: array and volume, of whatever patient."""
        return [name.partition(".zarr/")[2] for name in self if "/c/" in name]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    _require_no_reading_ahead()
    seen = Reads()
    read, read_ranges = Location.read, Location.read_ranges

    def watched(self: Location, relative: str, *size: int) -> bytes:
        seen.append(relative)
        return read(self, relative, *size)

    def watched_ranges(self: Location, ranges: list[Range]) -> list[bytes]:
        seen.extend(r.name for r in ranges)
        return read_ranges(self, ranges)

    monkeypatch.setattr(Location, "read", watched)
    monkeypatch.setattr(Location, "read_ranges", watched_ranges)
    return seen


def _require_no_reading_ahead() -> None:
    """Wait for what streams of earlier tests still read: their end does not."""
    reading = [t for t in threading.enumerate() if t.name.startswith("lundprobe-ahead")]
    if reading:
        gc.collect()  # closes streams that were left before their end; it takes half a second
    for thread in reading:
        thread.join(10)
        assert not thread.is_alive(), "an earlier test's stream is still reading"
