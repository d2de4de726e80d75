"""What the tests of faults share: two phantoms of the same patients, and their conversions."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import Converted, Reference, write_changed

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Two base patients and an extended one."""
    home = tmp_path_factory.mktemp("old")
    return converted(write_phantom(home / "source", patients=2, extended=1))


@pytest.fixture(scope="session")
def new(old: Converted, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The same patients with other files."""
    home = tmp_path_factory.mktemp("new")
    return converted(write_changed(old.source, 1, 2, 1, home / "source"))


def converted(source: Path) -> Converted:
    dataset = source.parent / "dataset"
    for patient in take_inventory(source).patients:
        assert convert_patient(patient, dataset, "standard").error is None
    finalise(dataset)
    return Converted(source, dataset, Reference.of(Location(dataset)))
