"""Two conversions into one place: the second is told of the first, and the dead hold nobody up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Workplace
from trees import NEW, OLD, snapshot

from conversion.claim import announced
from conversion.inventory import select, take_inventory
from conversion.patient import convert_patient
from conversion.place import _replace
from conversion.run import Options, convert
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.store.location import Location


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conversion.claim._BEAT_SECONDS", 0.25)
    monkeypatch.setattr("conversion.claim._DEAD_SECONDS", 1.0)


def runs(dataset: Path) -> list[Path]:
    return sorted((dataset / ".conversion" / "runs").iterdir())


def test_a_second_conversion_of_the_same_patients_is_refused_at_once(work: Workplace) -> None:
    inventory = take_inventory(work.source)
    with announced(Location(work.dataset), [OLD, "newAcq_00000000000000ff"]):
        (claim,) = runs(work.dataset)
        before = snapshot(work.dataset / "patients")
        with pytest.raises(UsageError) as raised:
            convert(inventory, work.dataset, Options(overwrite=True))
        assert snapshot(work.dataset / "patients") == before
        assert runs(work.dataset) == [claim], "that of the refused one is gone, the other stays"
        since = json.loads(claim.read_text())["since"]
    said = str(raised.value)
    assert f"process {os.getpid()} on {socket.gethostname()} since {since}" in said
    assert "on 1 of the 2 patients" in said
    assert "expected one at a time; wait for it or stop it" in said
    assert runs(work.dataset) == []


def test_shares_of_other_patients_run_side_by_side(work: Workplace) -> None:
    inventory = take_inventory(work.source)
    first, second = (select(inventory, part=(n, 2)) for n in (1, 2))
    with announced(Location(work.dataset), [p.patient_id for p in second.patients]):
        report = convert(first, work.dataset, Options(publish=False))
    assert [(r.patient_id, r.status) for r in report.results] == [(NEW, "skipped")]


@pytest.fixture
def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


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
    monkeypatch.setattr("conversion.claim._DEAD_SECONDS", 20.0)  # a slow disk is not death
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
        assert list(pool.map(_replace, rivals, [final] * len(rivals))) == [None] * len(rivals)
    assert [p.name for p in tmp_path.iterdir()] == ["patient.zarr"]
    assert [p.name for p in final.iterdir()] == ["zarr.json"]
