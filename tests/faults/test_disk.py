"""Disks that fill up, places that may not be written, sources that change: said, and survived."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing import Converted, Target, kill, objects, require_undisturbed, start

from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import PatientSource, take_inventory
from lundprobe_zarr.conversion.source.nifti import _HashingFile
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location

FULL = "no space left on the device; make room there, or choose another place"
IMAGE = "MR_StorT2/image.nii.gz"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its exit status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        shown = capfd.readouterr()
        printed = " ".join((shown.out + shown.err).split())
        assert "[Errno" not in printed
        assert "Traceback" not in printed
        return int(ended.value.code or 0), printed

    return run


class Disk:
    """A small disk of our own, that can be filled and made read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def left(self, size: int) -> Iterator[None]:
        """Within, so many bytes are left on it."""
        ballast = self.folder / "ballast"
        status = os.statvfs(self.folder)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - size)
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        mount("-o", "remount,ro", self.folder)
        try:
            yield
        finally:
            mount("-o", "remount,rw", self.folder)


def mount(*arguments: object) -> bool:
    command = ["mount", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder):
        pytest.skip("a small disk can be mounted by root on Linux alone")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def begun(old: Converted, disk: Disk) -> Path:
    """A dataset of all patients but the last, on that disk."""
    dataset = disk.folder / "dataset"
    shutil.copytree(old.dataset, dataset)
    shutil.rmtree(dataset / store_path(last(old).patient_id))
    for note in (dataset / ".conversion").rglob(f"{last(old).patient_id}*"):
        note.unlink()
    finalise(dataset)
    return dataset


def last(converted: Converted) -> PatientSource:
    return take_inventory(converted.source).patients[-1]


def texts(dataset: Path) -> dict[str, bytes]:
    """Manifest, tables and all that describes the dataset."""
    files = [*dataset.glob("*.*"), *dataset.glob("metadata/**/*.parquet")]
    return {str(f): f.read_bytes() for f in files if f.is_file()}


def test_a_disk_that_fills_up_costs_only_who_is_at_work(
    old: Converted, disk: Disk, begun: Path
) -> None:
    target = Target(str(begun), disk.folder / "scratch")
    with disk.left(300_000):
        process = start(old.source, target)
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 1, printed
    assert f"basePart/{last(old).patient_id}" in printed or last(old).folder in printed
    assert FULL in printed
    assert "[Errno" not in printed
    assert validate(target.location, deep=True).problems == ()
    for patient in take_inventory(old.source).patients[:-1]:
        there = objects(target.location, patient.patient_id)
        assert there == old.reference.stores[patient.patient_id], "what was converted stays"

    process = start(old.source, target, "--workers", 2)
    printed, _ = process.communicate(timeout=120)
    assert "1 converted, 2 skipped" in printed
    require_undisturbed(target, old.reference)


def test_tables_on_a_disk_that_fills_up_stay_as_they_were(
    old: Converted, disk: Disk, begun: Path, run: Run
) -> None:
    before = texts(begun)
    assert convert_patient(last(old), begun, "standard").error is None
    with disk.left(100_000):
        status, printed = run("finalise", begun)
        assert status == 3
        assert FULL in printed
        assert texts(begun) == before
    assert run("finalise", begun)[0] == 0
    assert not list(begun.rglob(".*.writing-*"))
    assert validate(Location(begun), deep=True).problems == ()


def test_a_copy_onto_a_disk_that_fills_up_is_finished_later(
    old: Converted, disk: Disk, run: Run
) -> None:
    copy = disk.folder / "copy"
    with disk.left(2_000_000):
        status, printed = run("copy", old.dataset, copy)
        assert status == 1
        assert f"{copy}/patients/" in printed
        assert FULL in printed
        assert not (copy / "lundprobe.json").exists()
    assert run("copy", old.dataset, copy)[0] == 0
    assert validate(Location(copy), deep=True).problems == ()


def test_what_does_not_fit_says_so(old: Converted, disk: Disk, run: Run) -> None:
    patient, out = last(old).patient_id, disk.folder / "out"
    report = disk.folder / "report.json"
    with disk.left(0):
        for command in (
            ("phantom", out, "--patients", "1"),
            ("export", old.dataset, patient, out),
            ("preview", old.dataset, patient, out.with_suffix(".png")),
            ("query", old.dataset, "SELECT * FROM arrays", "--output", out.with_suffix(".csv")),
            ("validate", old.dataset, "--report", report),
        ):
            status, printed = run(*command)
            assert status == 1, (command, printed)
            assert str(disk.folder) in printed.rpartition("error: ")[2], (command, printed)
            assert FULL in printed


def test_a_place_that_is_read_only_is_refused_before_any_work(
    old: Converted, disk: Disk, begun: Path, run: Run
) -> None:
    said = "the file system is read-only; mount it so that it can be written"
    (begun / store_path(take_inventory(old.source).patients[0].patient_id) / "zarr.json").unlink()
    with disk.read_only():
        for status, *command in (
            (2, "convert", old.source, begun),
            (2, "convert", old.source, disk.folder / "new"),
            (3, "finalise", begun),
            (2, "repair", old.source, begun),
            (3, "copy", old.dataset, disk.folder / "copy"),
            (1, "phantom", disk.folder / "source"),
        ):
            found, printed = run(*command)
            assert (found, said in printed) == (status, True), (command, printed)
            assert str(disk.folder) in printed


def without_rights_of_root() -> list[str]:
    """What runs a command so that permissions count for it."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("permissions do not count for root, and there is no setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


@pytest.mark.parametrize("name", ["locked", "locked/new"])
def test_a_folder_that_may_not_be_written_is_wrong_usage(
    old: Converted, tmp_path: Path, name: str
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    place = tmp_path / name
    process = start(old.source, Target(str(place), tmp_path), by=without_rights_of_root())
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2, printed
    assert f"{place}: cannot be written: permission denied" in printed
    assert "choose another place" in printed
    assert "probe" not in printed
    assert list((tmp_path / "locked").iterdir()) == []


def test_permission_that_is_lost_midway_costs_nothing_that_was_converted(
    old: Converted, tmp_path: Path
) -> None:
    target = Target(str(tmp_path / "dataset"), tmp_path / "scratch")
    stores = tmp_path / "dataset" / "patients"
    process = start(old.source, target, by=without_rights_of_root())
    try:
        await_store(stores)
        stores.chmod(0o555)
        assert process.wait(120) == 1
    finally:
        stores.chmod(0o755)
        printed = kill(process)
    assert "permission denied; expected permission to read and write there" in printed
    assert str(stores) in printed
    assert "[Errno" not in printed
    for patient in (p.name.removesuffix(".zarr") for p in stores.glob("[!.]*")):
        assert objects(target.location, patient) == old.reference.stores[patient]
    process = start(old.source, target)
    assert process.wait(120) == 0
    kill(process)
    require_undisturbed(target, old.reference)


def await_store(stores: Path) -> None:
    until = time.monotonic() + 60
    while not list(stores.glob("[!.]*.zarr")):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_file_that_changes_while_it_is_read_is_said_to(
    old: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(old.source, tmp_path / "source")
    patient = take_inventory(tmp_path / "source").patients[0]
    file = tmp_path / "source" / patient.folder / IMAGE
    whole, readinto = file.read_bytes(), _HashingFile.readinto

    def cut_short(self: _HashingFile, buffer: memoryview) -> int:
        if self._file.name == str(file):
            os.truncate(file, len(whole) // 2)
        return readinto(self, buffer)

    monkeypatch.setattr(_HashingFile, "readinto", cut_short)
    failed = convert_patient(patient, tmp_path / "dataset", "standard")
    monkeypatch.undo()
    assert failed.error == (
        f"{patient.folder}/{IMAGE}: changed while it was read ({len(whole)} bytes, now "
        f"{len(whole) // 2}); expected an unchanging file; run again when no program writes to it"
    )
    file.write_bytes(whole)
    assert convert_patient(patient, tmp_path / "dataset", "standard").error is None
    there = objects(Location(tmp_path / "dataset"), patient.patient_id)
    assert there == old.reference.stores[patient.patient_id]
