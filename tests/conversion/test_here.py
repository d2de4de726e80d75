"""Little data is converted and measured in this process, without workers; all else as with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from trees import LIGHT, NEW, OLD, snapshot, write_patient

from lundprobe_zarr.conversion.arrays.patient import PatientResult
from lundprobe_zarr.conversion.run import measure as measuring
from lundprobe_zarr.conversion.run import run as running
from lundprobe_zarr.conversion.run.measure import MeasureOptions, measure
from lundprobe_zarr.conversion.run.run import Options, Silent, convert
from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource, take_inventory
from lundprobe_zarr.storage.location import Location


class Workers(Exception):
    """Workers were to be started."""


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts workers learns of it."""

    @contextmanager
    def refuse(*needs: object) -> Iterator[NoReturn]:
        raise Workers
        yield

    for module in (running, measuring):
        monkeypatch.setattr(module, "run_client", refuse)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    """Two base patients, of sources of their own."""
    for patient_id in (NEW, OLD):
        write_patient(tmp_path / "source", patient_id, only=LIGHT)
    return take_inventory(tmp_path / "source")


class Told(Silent):
    """A reporter that remembers, and may interrupt the run after so many files."""

    def __init__(self, files: int = -1) -> None:
        self.told: list[Any] = []
        self.bytes = 0
        self.files = files

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        self.told.append((patients, source_bytes, workers))

    def advanced(self, source_bytes: int) -> None:
        self.bytes += source_bytes
        self.files -= 1
        if self.files == 0:
            raise KeyboardInterrupt

    def finished(self, result: PatientResult) -> None:
        self.told.append((result.patient_id, result.status))


def test_little_data_needs_no_worker_and_all_is_told(inventory: Inventory, tmp_path: Path) -> None:
    told = Told()
    assert convert(inventory, tmp_path / "d", reporter=told).count("converted") == 2
    total = sum(p.bytes for p in inventory.patients)
    assert told.told[0] == (2, total, 0)
    assert sorted(told.told[1:]) == [(NEW, "converted"), (OLD, "converted")]
    assert told.bytes == total


@pytest.mark.parametrize("options", [Options(workers=1), Options(scheduler="tcp://127.0.0.1:1")])
def test_workers_that_are_asked_for_are_there(
    inventory: Inventory, tmp_path: Path, options: Options
) -> None:
    with pytest.raises(Workers):
        convert(inventory, tmp_path / "d", options)
    asked = MeasureOptions(workers=options.workers, scheduler=options.scheduler)
    with pytest.raises(Workers):
        measure_of_an_extended(tmp_path, asked)


def test_much_data_is_for_workers(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_LITTLE_BYTES", sum(p.bytes for p in inventory.patients) - 1)
    with pytest.raises(Workers):
        convert(inventory, tmp_path / "d")
    monkeypatch.setattr(running, "_LITTLE_BYTES", 1 << 30)
    monkeypatch.setattr(measuring, "_LITTLE_BYTES", 1)
    with pytest.raises(Workers):
        measure_of_an_extended(tmp_path)


def measure_of_an_extended(home: Path, options: MeasureOptions | None = None) -> list[str]:
    """Convert an extended patient here and measure it; gives who was measured."""
    write_patient(home / "other", part="extended")
    convert(take_inventory(home / "other"), home / "measured")
    return measure(Location(home / "measured"), options).measured


def test_little_data_is_measured_here(tmp_path: Path) -> None:
    assert measure_of_an_extended(tmp_path) == [NEW]


def test_a_bug_and_a_failure_end_one_patient_and_not_the_other(
    inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = running.convert_patient

    def buggy(patient: PatientSource, *rest: Any) -> PatientResult:
        if patient.patient_id == NEW:
            raise IndexError("a bug")
        return sound(patient, *rest)

    monkeypatch.setattr(running, "convert_patient", buggy)
    report = convert(inventory, tmp_path / "d")
    (failed,) = report.failures
    assert failed.patient_id == NEW
    assert "IndexError: a bug" in str(failed.error)
    assert report.count("converted") == 1


def test_an_interrupt_leaves_nothing_half_done_and_the_next_run_goes_on(
    inventory: Inventory, tmp_path: Path
) -> None:
    of_the_first = len(LIGHT)
    report = convert(inventory, tmp_path / "d", reporter=Told(files=of_the_first + 1))
    assert report.interrupted
    assert report.count("converted") == 1
    stores = [p.name for p in (tmp_path / "d" / "patients").iterdir()]
    assert stores == [f"{report.results[0].patient_id}.zarr"]
    before = snapshot(tmp_path / "d" / "patients")
    again = convert(inventory, tmp_path / "d")
    assert (again.count("skipped"), again.count("converted")) == (1, 1)
    after = snapshot(tmp_path / "d" / "patients")
    assert before.items() <= after.items()
