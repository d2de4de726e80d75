"""The command killed at random instants: nothing torn is seen, and it goes on where it was."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from killing import (
    Converted,
    Target,
    delays,
    kill,
    killed_until_done,
    require_undisturbed,
    s3_target,
    start,
)

#: About as long as a conversion of the phantom takes, by workers and without; instants after its
#: end kill nothing.
SECONDS, SECONDS_HERE = 4.0, 2.5


def test_killed_at_random_instants_it_is_finished_by_the_same_command(
    old: Converted, tmp_path: Path
) -> None:
    target = Target(str(tmp_path / "dataset"), tmp_path / "scratch")
    instants = delays("fresh", SECONDS, most=2)
    kills, _ = killed_until_done(old.source, target, old.reference, instants, "--workers", 2)
    assert all(k.reader in ("no dataset yet", "a sound dataset") for k in kills)


def test_killed_while_patients_are_replaced_each_store_is_the_old_or_the_new(
    old: Converted, new: Converted, tmp_path: Path
) -> None:
    target = Target(str(tmp_path / "dataset"), tmp_path / "scratch")
    shutil.copytree(old.dataset, target.url)
    instants = delays("replaced", SECONDS_HERE, most=1)
    killed_until_done(new.source, target, new.reference, instants, before=[old.reference])


def test_killed_on_its_way_to_a_bucket_it_is_finished_by_the_same_command(
    old: Converted, tmp_path: Path
) -> None:
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    with s3_target(tmp_path / "scratch") as target:
        instants = delays("bucket", 2 * SECONDS_HERE, most=1)
        killed_until_done(old.source, target, old.reference, instants)


def test_a_worker_that_is_killed_is_replaced_and_the_run_goes_on(
    old: Converted, tmp_path: Path
) -> None:
    target = Target(str(tmp_path / "dataset"), tmp_path / "scratch")
    process = start(old.source, target, "--workers", 2)
    try:
        os.kill(writer_of_a_store(Path(target.url)), signal.SIGKILL)
        assert process.wait(60) == 0
    finally:
        printed = kill(process)
    assert "3 converted, 0 skipped (converted before, unchanged), 0 failed" in printed
    require_undisturbed(target, old.reference)


def writer_of_a_store(dataset: Path) -> int:
    """The process that writes a patient's store, as soon as one does."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for folder in dataset.glob("patients/.*.partial-*"):
            return int(folder.name.split("-")[-2])
        time.sleep(0.005)
    raise AssertionError("no store was begun")
