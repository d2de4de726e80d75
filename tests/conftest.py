"""A phantom and its conversion, made once a session: everything below may read them, only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.phantom import write_phantom

settings.register_profile("busy", deadline=None)  # a machine may have more to do than our tests
settings.load_profile("busy")


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree of a tiny phantom: three base patients and an extended one. Read-only."""
    return write_phantom(tmp_path_factory.mktemp("source") / "phantom", patients=3, extended=1)


@pytest.fixture(scope="session")
def dataset(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom converted with `standard` precision, in this process. Read-only."""
    folder = tmp_path_factory.mktemp("dataset") / "phantom"
    for patient in take_inventory(phantom_source).patients:
        result = convert_patient(patient, folder, "standard")
        assert result.status == "converted", result.error
    finalise(folder)
    return folder
