"""Two conversions into one place: the second is told of the first, and the dead hold nobody up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trees import NEW, OLD, Workplace, convert_tree, snapshot

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.draft import remove_unfinished
from lundprobe_zarr.conversion.notes.lease import lease_patients, lease_tables
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import select, take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.folders import replace_folder
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lundprobe_zarr.conversion.notes.lease._BEAT_SECONDS", 0.25)
    monkeypatch.setattr("lundprobe_zarr.conversion.notes.lease._DEAD_SECONDS", 1.0)


def runs(dataset: Path) -> list[Path]:
    return sorted((dataset / ".conversion" / "runs").iterdir())


def test_a_second_conversion_of_the_same_patients_is_refused_at_once(work: Workplace) -> None:
    inventory = take_inventory(work.source)
    with lease_patients(Location(work.dataset), [OLD, "newAcq_00000000000000ff"]):
        (claim,) = runs(work.dataset)
        before = snapshot(work.dataset / "patients")
        with pytest.raises(UsageError) as raised:
            convert(inventory, work.dataset, Options(overwrite=True))
        assert snapshot(work.dataset / "patients") == before
        assert runs(work.dataset) == [claim], "that of the refused one is gone, the other stays"
        since = json.loads(claim.read_text())["since"]
    said = str(raised.value)
    assert f"process {os.getpid()} on {socket.gethostname()} since {since}" in said
    assert "on 1 of the 2 requested patients" in said
    assert "expected one at a time; wait for it or stop it" in said
    assert runs(work.dataset) == []


def test_shares_of_other_patients_run_side_by_side(work: Workplace) -> None:
    inventory = take_inventory(work.source)
    first, second = (select(inventory, part=(n, 2)) for n in (1, 2))
    with lease_patients(Location(work.dataset), [p.patient_id for p in second.patients]):
        report = convert(first, work.dataset, Options(publish=False))
    assert [(r.patient_id, r.status) for r in report.results] == [(NEW, "skipped")]


def test_of_runs_that_end_at_once_one_waits_to_write_the_tables(work: Workplace) -> None:
    with ThreadPoolExecutor(1) as pool:
        with lease_tables(Location(work.dataset)):
            other = pool.submit(finalise, work.dataset)
            time.sleep(0.5)
            assert not other.done()
            assert not (work.dataset / "lundprobe.json").exists()
            convert_tree(work.source, work.dataset)  # as the one that waits could not know
        assert sum(other.result(10).manifest.patients.values()) == 2
    assert list((work.dataset / ".conversion" / "publishing").iterdir()) == []


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_a_process_that_ended_unnoticed_is_dead() -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # ended, or nearly so; nobody has waited for it
        name = f"{socket.gethostname()}-{process.pid}-abc"
        until = time.monotonic() + 10
        while is_alive(name):
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("place", ["{folder}", "memory://{folder}"])
def test_claims_and_probes_of_killed_runs_are_cleared(
    tmp_path: Path, dead: int, place: str
) -> None:
    dataset = Location(place.format(folder=tmp_path / "dataset"))
    there = ["runs/{}", "publishing/{}", f"claims/{NEW}/{{}}", "probe-{}"]
    for name in there:
        for process in (dead, os.getpid()):
            who = f"{socket.gethostname()}-{process}-0123abcd"
            dataset.write(f".conversion/{name.format(who)}", b"{}")
        dataset.write(f".conversion/{name.format('another-host-1-abc')}", b"{}")
    remove_unfinished(dataset)
    left_over = list(dataset.find(".conversion"))
    assert len(left_over) == 2 * len(there)
    assert not any(f"-{dead}-" in name for name in left_over)


def test_files_that_a_killed_run_was_writing_are_cleared(work: Workplace, dead: int) -> None:
    host = socket.gethostname()
    places = ["", "metadata", "metadata/slices", ".conversion", ".conversion/runs"]
    for place in places:
        (work.dataset / place).mkdir(parents=True, exist_ok=True)
        for process in (dead, os.getpid()):
            left = work.dataset / place / f".some.json.writing-{host}-{process}-0123abcd"
            left.write_text("half of it")
    remove_unfinished(Location(work.dataset))
    left_over = list(work.dataset.rglob(".*.writing-*"))
    assert len(left_over) == len(places)
    assert all(f"-{os.getpid()}-" in p.name for p in left_over)


@pytest.mark.parametrize("name", ["{host}-{dead}-abc", "another-host-1-abc", "{host}-{me}-abc"])
@pytest.mark.parametrize("said", [json.dumps({"patients": [NEW]}), "no JSON", ""])
def test_the_claim_of_one_that_was_killed_holds_nobody_up(
    work: Workplace, dead: int, name: str, said: str
) -> None:
    shutil.rmtree(work.source / "basePart" / OLD)
    folder = work.dataset / ".conversion" / "runs"
    folder.mkdir()
    (folder / name.format(host=socket.gethostname(), dead=dead, me=os.getpid())).write_text(said)
    report = convert(take_inventory(work.source), work.dataset)
    assert [r.status for r in report.results] == ["skipped"]
    assert runs(work.dataset) == []


@pytest.fixture
def beating(work: Workplace) -> Iterator[Path]:
    """The claim of a conversion on another machine, which lives."""
    claim = work.dataset / ".conversion" / "runs" / "another-host-17-abc"
    claim.parent.mkdir()
    ended = threading.Event()

    def write(beats: int) -> None:
        said = {"patients": [NEW], "since": "noon", "beat": beats}
        Location(claim.parent).write(claim.name, json.dumps(said).encode())

    def beat() -> None:
        beats = 0
        while not ended.wait(0.02):
            write(beats := beats + 1)

    write(0)
    thread = threading.Thread(target=beat)
    thread.start()
    yield claim
    ended.set()
    thread.join()


def test_a_living_one_on_another_machine_is_known_by_its_beats(
    work: Workplace, beating: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lundprobe_zarr.conversion.notes.lease._DEAD_SECONDS", 20.0
    )  # a slow disk is not death
    with pytest.raises(UsageError, match="process 17 on another-host since noon, on 1 of the 2"):
        convert(take_inventory(work.source), work.dataset)
    others = select(take_inventory(work.source), [OLD])
    (patient,) = others.patients
    assert convert_patient(patient, work.dataset, "standard").error is None
    assert convert(others, work.dataset).count("skipped") == 1


def test_workers_given_up_and_alive_do_not_trip_over_each_other(tmp_path: Path) -> None:
    final, rivals = tmp_path / "patient.zarr", [tmp_path / f"draft-{n}" for n in range(100)]
    for draft in rivals:
        draft.mkdir()
        (draft / "zarr.json").write_text(draft.name)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(replace_folder, rivals, [final] * len(rivals))) == [None] * len(rivals)
    assert [p.name for p in tmp_path.iterdir()] == ["patient.zarr"]
    assert [p.name for p in final.iterdir()] == ["zarr.json"]
