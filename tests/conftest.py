"""A phantom and its conversion, made once a session: everything below may read them, only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.fragments import save_compared
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.compared import compare_store
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store

settings.register_profile("busy", deadline=None)  # a machine may have more to do than our tests
settings.load_profile("busy")


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree of a tiny phantom: three base patients and an extended one. Read-only."""
    return write_phantom(tmp_path_factory.mktemp("source") / "phantom", patients=3, extended=1)


@pytest.fixture(scope="session")
def dataset(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom converted with `standard` precision and measured, in this process. Read-only."""
    folder = tmp_path_factory.mktemp("dataset") / "phantom"
    for patient in take_inventory(phantom_source).patients:
        result = convert_patient(patient, folder, "standard")
        assert result.status == "converted", result.error
        store = open_store(Location(folder), patient.patient_id)
        save_compared(Location(folder), store, compare_store(Location(folder), store))
    finalise(folder)
    return folder
