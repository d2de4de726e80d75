"""A conversion killed outright, at any instant: nothing torn is seen, and the next run finishes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trees import MRI, SCT, snapshot, write_patient

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.draft import remove_leftovers
from lundprobe_zarr.conversion.notes.state import is_current
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from tests.altered import but_for_time

ROOT = Path(__file__).parents[2]
PATIENTS = [f"newAcq_{n:016x}" for n in range(3)]
FILES = (MRI, SCT, "MR_StorT2/mask_Bladder.nii.gz", "sCT/dose_original.nii.gz")
#: Converts all patients over and over, so that a kill also falls into a store's replacement.
PROGRAM = """
import sys
from pathlib import Path
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.arrays.patient import convert_patient
source, dataset = map(Path, sys.argv[1:])
patients = take_inventory(source).patients
print("ready", flush=True)
sys.stdin.readline()
while True:
    for patient in patients:
        assert convert_patient(patient, dataset, "standard").error is None
"""
DELAYS_S = [round(random.Random(seed).uniform(0, 1.2), 3) for seed in range(4)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed") / "source"
    for patient in PATIENTS:
        write_patient(root, patient, only=FILES)
    return root


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, str]:
    dataset = source.parent / "undisturbed"
    run_again(source, dataset)
    return contents(dataset)


@pytest.fixture(scope="module")
def start(source: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], Path]]]:
    """Hands out conversions that have begun, each into a dataset of its own."""
    waiting = []
    for n, _ in enumerate(DELAYS_S):
        dataset = source.parent / f"dataset-{n}"
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(source), str(dataset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        waiting.append((process, dataset))

    def begin() -> tuple[subprocess.Popen[str], Path]:
        process, dataset = waiting.pop()
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        return process, dataset

    yield begin
    for process, _ in waiting:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def run_again(source: Path, dataset: Path) -> list[str]:
    """What a run does, without its cluster; returns the patients it converted."""
    converted = []
    for patient in take_inventory(source).patients:
        remove_leftovers(Location(dataset), [patient.patient_id])
        if not is_current(dataset, patient, "standard"):
            assert convert_patient(patient, dataset, "standard").error is None
            converted.append(patient.patient_id)
    finalise(dataset)
    return converted


def contents(dataset: Path) -> dict[str, str]:
    """Everything in the stores but the time they were made."""
    files = snapshot(dataset / "patients")
    for root in (dataset / "patients").glob("*/zarr.json"):
        metadata = but_for_time(json.loads(root.read_text()))
        key = root.relative_to(dataset / "patients").as_posix()
        files[key] = json.dumps(metadata, sort_keys=True)
    return files


def require_nothing_torn(dataset: Path, copy: Path) -> int:
    """Each store that has its name is whole, to every byte; returns how many there are."""
    stores = list((dataset / "patients").glob("[!.]*.zarr"))
    if stores:
        (copy / "patients").mkdir(parents=True)
        for store in stores:
            shutil.copytree(store, copy / "patients" / store.name)
        published = finalise(copy)
        assert published.left_out == ()
        assert validate(Location(copy), deep=True).problems == ()
    return len(stores)


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_a_conversion_killed_at_any_instant_leaves_nothing_torn_and_is_finished_by_the_next(
    source: Path,
    undisturbed: dict[str, str],
    start: Callable[[], tuple[subprocess.Popen[str], Path]],
    tmp_path: Path,
    delay_s: float,
) -> None:
    process, dataset = start()
    time.sleep(delay_s)
    kill(process)
    assert process.returncode == -signal.SIGKILL

    require_nothing_torn(dataset, tmp_path / "copy")
    run_again(source, dataset)

    assert contents(dataset) == undisturbed
    assert not list((dataset / "patients").glob(".*")), "no leftovers"
    assert validate(Location(dataset), deep=True).problems == ()
    assert run_again(source, dataset) == []


def test_a_kill_between_the_two_renames_of_a_replacement_puts_the_old_store_back(
    source: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    run_again(source, dataset)
    store = dataset / store_path(PATIENTS[0])
    store.rename(store.with_name(f".{store.name}.replaced-0123abcd"))
    (dataset / ".conversion" / f"{PATIENTS[0]}.json").unlink()
    assert run_again(source, dataset) == [], "put back, and its contents prove it current"
    assert contents(dataset) == undisturbed


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_run_with_its_workers_killed_is_finished_by_the_next(
    source: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    program = (
        "import sys; from pathlib import Path\n"
        "from lundprobe_zarr.conversion.source.inventory import take_inventory\n"
        "from lundprobe_zarr.conversion.run.run import Options, convert\n"
        "if __name__ == '__main__':\n"
        "    convert(take_inventory(Path(sys.argv[1])), Path(sys.argv[2]), Options(workers=2))\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(dataset)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(dataset.glob("patients/*.zarr*")) and not list(dataset.glob("patients/.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    wait_until_gone(process.pid)
    require_nothing_torn(dataset, tmp_path / "copy")
    run_again(source, dataset)
    assert contents(dataset) == undisturbed
    assert not list((dataset / "patients").glob(".*")), "no leftovers"


def wait_until_gone(group: int) -> None:
    """Until the last process of a killed group is no more."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
