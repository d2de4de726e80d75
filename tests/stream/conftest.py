"""Cohorts to stream, near and far."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.storage.retry import CLOCK, ONCE, RetryPolicy
from tests.anywhere.servers import Traffic, file_server


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> lp.Cohort:
    """All patients of the converted phantom: three base, one extended."""
    return lp.open_cohort(dataset)


class Web:
    """The dataset on a web server, and the server's traffic."""

    def __init__(self, url: str, traffic: Traffic) -> None:
        self.url = url
        self.traffic = traffic

    @property
    def cohort(self) -> lp.Cohort:
        """All patients, opened anew."""
        return lp.open_cohort(self.url)


@pytest.fixture(scope="session")
def web(dataset: Path) -> Iterator[Web]:
    """The dataset on a web server of this process."""
    pytest.importorskip("aiohttp")
    with file_server(dataset.parent) as (url, traffic):
        yield Web(f"{url}/{dataset.name}", traffic)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, and a server's failures are not retried below us."""
    monkeypatch.setattr(RetryPolicy, "of", classmethod(lambda cls, seconds: ONCE))
    monkeypatch.setattr(CLOCK, "sleep", lambda seconds: None)
