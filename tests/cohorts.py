"""Cohorts to ask: of the converted phantom, and of tables simulated for many patients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.cohort import simulate
from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.storage.location import Location


@pytest.fixture(scope="session")
def phantom(dataset: Path) -> Cohort:
    """All patients of the converted phantom: three base, one extended."""
    return open_cohort(dataset)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of 467 patients, tables only. Read-only."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, 467)
    return folder


@pytest.fixture(scope="session")
def many(simulated: Path) -> Cohort:
    """All of the 467."""
    return open_cohort(simulated)


class Reads:
    """Objects read from a dataset while `counted` holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        names: list[str] = []

        original = Location.read

        def read(location: Location, relative: str, *size: int) -> bytes:
            names.append(relative)
            return original(location, relative, *size)

        with self._patch.context() as patch:
            patch.setattr(Location, "read", read)
            yield names


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)
