"""Pipes and devices in a dataset, which a tar may hold: no files, and never waited for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.run.run import convert
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Ends the test run if one of these tests hangs, which nothing else would."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture(params=["pipe", "device"])
def endless(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts in a file's place what never ends."""

    def apply(file: Path) -> None:
        file.unlink()
        if request.param == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to("/dev/zero")

    return apply


def some_patient(dataset: Path) -> str:
    return next(p.name for p in sorted((dataset / "patients").iterdir())).removesuffix(".zarr")


@pytest.mark.parametrize("name", ["lundprobe.json", "metadata/patients.parquet"])
def test_in_place_of_what_says_who_is_there(copied, endless, name):
    endless(copied / name)
    with pytest.raises(DatasetError, match="not there"):
        len(lp.open_cohort(copied))
    if name == "lundprobe.json":
        with pytest.raises(DatasetError, match="not there"):
            validate(Location(copied))
    else:
        assert "not there" in str(validate(Location(copied)).problems[0])
    finalise(copied)
    assert validate(Location(copied)).problems == ()


@pytest.mark.parametrize("name", ["zarr.json", "mri/image/c/0/0/0/0", "mri/zarr.json"])
def test_in_place_of_a_part_of_a_store(copied, endless, name):
    patient = some_patient(copied)
    endless(copied / "patients" / f"{patient}.zarr" / name)
    if name != "mri/zarr.json":  # which our readers do not need
        with pytest.raises(DatasetError, match=f"{patient}.*(not there|missing|no store)"):
            lp.open_cohort(copied)[patient].mri["image"].compute()
    found = {p.patient_id for p in validate(Location(copied), deep=True).problems}
    assert found == {patient}


def test_in_place_of_a_store_or_its_root_the_patient_is_converted_again(
    phantom_source, copied, endless
):
    inventory = take_inventory(phantom_source)
    before = json.loads((copied / "lundprobe.json").read_text())["content"]
    stores = sorted((copied / "patients").iterdir())
    endless(stores[0] / "zarr.json")
    shutil.rmtree(stores[1])
    stores[1].touch()
    endless(stores[1])
    report = convert(inventory, copied)
    assert sorted(r.status for r in report.results) == ["converted"] * 2 + ["skipped"] * 2
    assert json.loads((copied / "lundprobe.json").read_text())["content"] == before
    assert [p.name for p in (copied / "patients").iterdir() if p.name.startswith(".")] == []


def test_in_place_of_kept_rows_or_notes(copied, endless):
    patient = some_patient(copied)
    before = json.loads((copied / "lundprobe.json").read_text())["content"]
    endless(copied / ".conversion" / "structures" / f"{patient}.parquet")
    finalise(copied)
    assert json.loads((copied / "lundprobe.json").read_text())["content"] == before
