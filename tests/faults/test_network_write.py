"""Buckets that fail while they are written to: what arrived is right, or it is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import PatientSource, take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage import retry
from lundprobe_zarr.storage.location import Location
from tests.faults.proxy import UPLOADS, Remote, lasting, passing, s3_behind, within

HANGS = 60.0
#: Of a table, the manifest, a side file, two objects of each store.
PARTS = ("structures/base", "lundprobe.json", "README", ".zarr/zarr.json", "sct/image/c/0")


@pytest.fixture(scope="module")
def small(one_patient: Path) -> Path:
    """A dataset of one base patient."""
    return one_patient / "dataset"


def base_patient(source: Path) -> PatientSource:
    return next(p for p in take_inventory(source).patients if p.part == "base")


@pytest.fixture(scope="module")
def s3(small: Path) -> Iterator[Remote]:
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    with s3_behind(small) as remote:
        yield remote


@pytest.fixture(autouse=True)
def lines_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits do not grow with what is sent."""
    monkeypatch.setattr(retry, "_SLOWEST", 10**9)


def beside(s3: Remote, name: str, seconds: float) -> Location:
    return Location(f"s3://faults/{name}", s3.reach(timeout=seconds))


@pytest.mark.parametrize("fault", UPLOADS)
def test_a_copy_arrives_although_uploads_fail_once(s3, small, fault):
    place = beside(s3, f"once {fault}", 8)
    with s3.proxy.spoiling(passing(fault, PARTS[2:], methods=("PUT",))) as met:
        report = within(HANGS, lambda: copy_dataset(Location(small), place))
    assert met[fault] >= 3
    assert not report.failures
    assert validate(place, deep=True).problems == ()


@pytest.mark.parametrize("fault", [*UPLOADS, "stall"])
def test_a_copy_whose_uploads_fail_for_good_says_what_is_not_there(s3, small, fault):
    place, started = beside(s3, f"lasting {fault}", 0.5), time.monotonic()
    with s3.proxy.spoiling(lasting(fault, "sct/image/c/0", ("PUT",))):
        report = within(HANGS, lambda: copy_dataset(Location(small), place))
    assert time.monotonic() - started < 30
    (failure,) = report.failures
    assert "sct/image/c/0" in str(failure.error)
    assert not place.exists("lundprobe.json")
    store = f"patients/{failure.patient_id}.zarr"
    assert not place.exists(f"{store}/zarr.json"), "nobody takes it for a store"


@pytest.mark.parametrize("fault", ["stored cut short", "stored, then 500"])
def test_a_conversion_arrives_although_uploads_fail_once(s3, phantom_source, fault, tmp_path):
    place = beside(s3, f"converted {fault}", 8)
    patient = base_patient(phantom_source)
    parts = PARTS if fault == "stored cut short" else PARTS[1:2]
    with s3.proxy.spoiling(passing(fault, parts, methods=("PUT",))) as met:
        result = within(
            HANGS, lambda: convert_patient(patient, place, "standard", scratch=tmp_path)
        )
        assert result.error is None
        within(HANGS, lambda: finalise(place))
    assert met[fault] >= len(parts)
    assert validate(place, deep=True).problems == ()


def test_tables_that_never_arrive_whole_are_said(s3, phantom_source, tmp_path):
    place = beside(s3, "never whole", 5)
    patient = base_patient(phantom_source)
    assert convert_patient(patient, place, "standard", scratch=tmp_path).error is None
    spoiling = s3.proxy.spoiling(lasting("stored cut short", "metadata/structures", ("PUT",)))
    with spoiling, pytest.raises(DatasetError, match=r"structures/base-00000\.parquet"):
        within(HANGS, lambda: finalise(place))
    assert not place.exists("lundprobe.json")
