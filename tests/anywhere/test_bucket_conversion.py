"""Conversion straight to a bucket: as safe, as resumable and as exact as to a disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import SECRET, Place

from lundprobe_zarr import open_cohort
from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.draft import require_usable
from lundprobe_zarr.conversion.notes.lease import lease_upload
from lundprobe_zarr.conversion.notes.state import are_current, is_current
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import PatientSource, take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError, LundProbeError, UsageError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.tables import MEASURED, store_path
from lundprobe_zarr.storage.location import Location
from tests.altered import but_for_time

ROOT = Path(__file__).parents[2]


def contents(location: Location) -> dict[str, str]:
    """SHA-256 of every object of every store, but for the time it was made."""
    found = {}
    for name in location.find("patients"):
        data = location.read(f"patients/{name}")
        if name.count("/") == 1:
            data = json.dumps(but_for_time(json.loads(data)), sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


@pytest.fixture(scope="session")
def reference(dataset: Path) -> dict[str, str]:
    """What the stores hold when nothing disturbs a conversion to a disk."""
    return contents(Location(dataset))


@pytest.fixture(scope="session")
def two_patients(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree of two of the patients, with times and all."""
    source = tmp_path_factory.mktemp("two") / "phantom"
    shutil.copytree(phantom_source, source, ignore=shutil.ignore_patterns("newAcq_*"))
    assert len(patients(source)) == 2
    return source


@pytest.fixture(scope="session")
def two(reference: dict[str, str]) -> dict[str, str]:
    """What the stores of these two hold."""
    return {name: sha256 for name, sha256 in reference.items() if name.startswith("oldAcq_")}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A scratch folder that must be empty in the end."""
    return tmp_path / "scratch"


def patients(source: Path) -> tuple[PatientSource, ...]:
    return take_inventory(source).patients


def convert_all(source: Path, location: Location, scratch: Path) -> list[str]:
    """What a run does, without its cluster; returns the patients it converted."""
    converted = []
    for patient in patients(source):
        if not is_current(location, patient, "standard"):
            result = convert_patient(patient, location, "standard", scratch=scratch)
            assert result.error is None
            converted.append(patient.patient_id)
    finalise(location)
    return converted


def test_command_by_shares_to_a_bucket(
    two_patients, empty_s3, two, dataset, tmp_path, monkeypatch, capfd
):
    """Everything a user does, with the options in the environment."""
    monkeypatch.setenv("LUNDPROBE_STORAGE_OPTIONS", json.dumps(empty_s3.options))
    place, report = empty_s3.beside("by command/dåtaset"), tmp_path / "report.json"

    def run(*arguments: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        return int(ended.value.code or 0)

    common = ("convert", two_patients, place.url, "--scratch", tmp_path / "scratch")
    for share in ("1/2", "2/2"):
        assert run(*common, "--part", share, "--report", report) == 0
    assert not place.location.exists("lundprobe.json")
    assert run("finalise", f"{place.url}/") == 0
    assert contents(place.location) == two
    assert validate(place.location, deep=True).problems == ()
    mine = open_cohort(place.url, place.options)
    local = open_cohort(dataset).where("protocol = 'oldAcq'")
    for table in ("patients", "structures", "slices", "foreground", "arrays"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert mine.sql(query).to_json() == local.sql(query).to_json()

    stores = len(patients(two_patients))
    with empty_s3.traffic.counted() as asked:
        assert run(*common, "--report", report) == 0
    assert "2 skipped" in capfd.readouterr().out
    assert len(asked) < 10 * stores + 60, "not a request per file"
    assert not [r for r in asked if r.method in ("PUT", "DELETE") and ".zarr/" in r.path]
    assert list((tmp_path / "scratch").iterdir()) == []

    assert run(*common, "--dry-run") == 0
    assert "2 patients skipped" in capfd.readouterr().out
    assert run(*common, "--precision", "compact") == 2
    assert "was converted with precision standard" in capfd.readouterr().err
    patient = open_cohort(place.url, place.options)[0].patient_id
    for command in (("validate",), ("info",), ("finalise", "--rebuild"), ("query", "true")):
        assert run(command[0], place.url, *command[1:]) == 0
    assert run("info", place.url, patient) == 0
    assert run("export", place.url, patient, tmp_path / "nifti") == 0
    shown = capfd.readouterr()
    everything = b"".join(place.location.read(n) for n in place.location.find(""))
    assert SECRET not in shown.out + shown.err + report.read_text()
    assert SECRET.encode() not in everything


PROGRAM = """
import json, sys
from pathlib import Path
from lundprobe_zarr.conversion.notes.lease import lease_upload
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.storage.location import Location
source, url, scratch = sys.argv[1:]
location = Location(url, json.loads(sys.stdin.readline()))
for patient in take_inventory(Path(source)).patients:
    assert convert_patient(patient, location, "standard", scratch=Path(scratch)).error is None
"""


@pytest.mark.parametrize("puts", [2, 100])
def test_killed_at_work_nothing_torn_is_seen_and_the_next_run_finishes(
    two_patients, empty_s3, two, scratch, puts
):
    place = empty_s3.beside(f"killed-{puts}")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(two_patients), place.url, str(scratch)],
        stdin=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    with empty_s3.traffic.counted() as asked, process:
        process.stdin.write(json.dumps(place.options) + "\n")
        process.stdin.flush()
        begun = len(empty_s3.traffic.requests)
        while process.poll() is None:
            sent = [r for r in empty_s3.traffic.requests[begun:] if r.method == "PUT"]
            if len(sent) >= puts:
                break
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "killed at work"
    assert asked

    there = contents(place.location)
    complete = {n.split("/")[0] for n in there if n.count("/") == 1 and n.endswith("zarr.json")}
    assert len(complete) < len(patients(two_patients))
    for store in complete:
        assert {n: h for n, h in there.items() if n.split("/")[0] == store} == {
            n: h for n, h in two.items() if n.split("/")[0] == store
        }
    convert_all(two_patients, place.location, scratch)
    assert contents(place.location) == two
    assert list(scratch.iterdir()) == [], "what the killed one left is cleared"
    assert validate(place.location).problems == ()
    assert convert_all(two_patients, place.location, scratch) == []


def claim(location: Location, patient: str, name: str) -> str:
    there = f".conversion/claims/{patient}/{name}"
    location.write(there, b"a beat")
    return there


def test_patient_whom_a_living_conversion_sends_is_left_alone(changed, tmp_path, scratch):
    source, patient = changed
    place = Watched(f"memory://{tmp_path}/d")
    with quick_beats(), lease_upload(place, patient):
        place.log.clear()
        result = convert_patient(patients(source)[0], place, "standard", scratch=scratch)
    assert result.status == "failed"
    assert "another conversion is uploading this patient" in str(result.error)
    assert not [n for n in place.log if store_path(patient) in n], "its store was not touched"
    assert place.find(".conversion/claims") == {}
    assert convert_all(source, place, scratch) == [patient]


class Together(Location):
    """A place where those who look for others wait until all of them have claimed."""

    barrier: threading.Barrier

    def children(self, relative: str) -> list[str]:
        self.barrier.wait(timeout=20)
        return super().children(relative)


@pytest.mark.parametrize("several", [2, 4])
def test_of_conversions_that_begin_at_once_the_first_by_name_goes_on(
    empty_s3, monkeypatch, several
):
    host, barrier = socket.gethostname(), threading.Barrier(several)
    names = [f"{host}-{os.getpid()}-{n}" for n in range(several)]
    left = list(reversed(names))
    monkeypatch.setattr("lundprobe_zarr.conversion.notes.lease.writer", left.pop)
    sending, outcome = threading.Lock(), []

    def send() -> str:
        place = Together(empty_s3.url, empty_s3.options)
        place.barrier = barrier
        try:
            with lease_upload(place, "newAcq_0123456789abcdef"):
                assert sending.acquire(blocking=False), "alone"
                claims = empty_s3.location.children(".conversion/claims/newAcq_0123456789abcdef")
                outcome.append(claims[0])
                time.sleep(0.2)
                sending.release()
                return "sent"
        except DatasetError as error:
            return str(error)

    with quick_beats(), ThreadPoolExecutor(several) as pool:
        said = [f.result() for f in [pool.submit(send) for _ in names]]
    assert outcome == [names[0]]
    assert sum("another conversion is uploading this patient" in s for s in said) == several - 1
    assert empty_s3.location.find(".conversion/claims") == {}


@pytest.mark.parametrize("name", ["another-host-1-abc", "odd", "{host}-{dead}-abc"])
def test_claim_of_the_dead_does_not_hold(changed, tmp_path, scratch, name):
    source, patient = changed
    with subprocess.Popen(["true"]) as dead:
        pass
    place = Location(f"memory://{tmp_path}/d")
    claim(place, patient, name.format(host=socket.gethostname(), dead=dead.pid))
    with quick_beats():
        assert convert_all(source, place, scratch) == [patient]
    assert place.find(".conversion/claims") == {}


@contextmanager
def quick_beats() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lundprobe_zarr.conversion.notes.lease._BEAT_SECONDS", 0.05)
        patch.setattr("lundprobe_zarr.conversion.notes.lease._DEAD_SECONDS", 1.0)
        yield


class Killed(BaseException):
    """Ends a conversion as a signal does."""


class Watched(Location):
    """A place that notes what is written and deleted, and may be killed at any of these."""

    log: list[str]
    kill_at = -1

    def __init__(self, *where: object) -> None:
        super().__init__(*where)
        self.log = []

    def _note(self, what: str) -> None:
        if len(self.log) == self.kill_at:
            raise Killed
        self.log.append(what)

    def write(self, relative: str, data: bytes) -> None:
        self._note(relative)
        super().write(relative, data)

    def delete(self, relative: str) -> None:
        self._note(f"-{relative}")
        super().delete(relative)


@pytest.fixture
def changed(phantom_source: Path, tmp_path: Path) -> tuple[Path, str]:
    """A source tree of one patient, who then loses a structure, another of whose masks empties."""
    source = tmp_path / "source"
    patient = next((phantom_source / "basePart").iterdir())
    shutil.copytree(patient, source / "basePart" / patient.name)
    return source, patient.name


def change(source: Path, patient: str) -> None:
    import nibabel as nib
    import numpy as np

    folder = source / "basePart" / patient / "MR_StorT2"
    (folder / "mask_Genitalia.nii.gz").unlink(missing_ok=True)
    (folder / "mask_BODY.nii.gz").unlink()
    bladder = nib.load(folder / "mask_Bladder.nii.gz")
    emptied = nib.Nifti1Image(np.zeros(bladder.shape, np.uint8), bladder.affine, bladder.header)
    nib.save(emptied, folder / "mask_Bladder.nii.gz")


def test_changed_patient_is_hidden_while_it_is_replaced(changed, tmp_path, scratch):
    source, patient = changed
    place = Watched(f"memory://{tmp_path}/d")
    convert_all(source, place, scratch)
    change(source, patient)
    place.log.clear()
    assert convert_all(source, place, scratch) == [patient]

    store = store_path(patient)
    ours = [n.replace(f"{store}/", "") for n in place.log if f"{store}/" in n]
    metadata = [n.endswith("zarr.json") for n in ours]
    written = [not n.startswith("-") for n in ours]
    first_data = metadata.index(False)
    assert ours[0] == "-zarr.json"
    assert not any(written[:first_data]), "metadata is deleted before any data change"
    assert f"-{store}/mri/clinical/zarr.json" in place.log
    assert ours[-1] == "zarr.json"
    last_data = len(metadata) - 1 - metadata[::-1].index(False)
    assert all(metadata[last_data + 1 :]), "metadata is written once all data are there"
    assert any(written[last_data + 1 : -1])
    note = f".conversion/{patient}.json"
    assert place.log.index(f"-{note}") < place.log.index(f"-{store}/zarr.json")
    assert place.log.index(note) > place.log.index(f"{store}/zarr.json")

    fresh = tmp_path / "fresh"
    assert convert_patient(patients(source)[0], fresh, "standard").error is None
    assert contents(place) == contents(Location(fresh))
    assert validate(place, deep=True).problems == ()


#: What is deleted and written before the root of a store that is replaced: notes and measured rows.
_BEFORE_ROOT = 3 + len(MEASURED)


@dataclass(frozen=True)
class Replacement:
    """A source tree of one patient before a change, and after it; what each makes."""

    before: Path
    after: Path
    patient: str
    objects: dict[str, bytes]
    old: dict[str, str]
    new: dict[str, str]


@pytest.fixture(scope="module")
def replacement(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Replacement:
    """A patient who changes; neither tree may be altered."""
    home = tmp_path_factory.mktemp("replacement")
    patient = next((phantom_source / "basePart").iterdir())
    before, after = home / "before", home / "after"
    for source in (before, after):
        shutil.copytree(patient, source / "basePart" / patient.name)
    change(after, patient.name)
    first, second = Location(f"memory://{home}/first"), Location(f"memory://{home}/second")
    convert_all(before, first, home / "scratch")
    convert_all(after, second, home / "scratch")
    objects = {name: first.read(name) for name in first.find("")}
    return Replacement(before, after, patient.name, objects, contents(first), contents(second))


@pytest.mark.parametrize("kill_at", [1, *(_BEFORE_ROOT + n for n in (0, 1, 5, 9, 13))])
def test_replacement_killed_anywhere_shows_the_old_or_the_new_or_nothing(
    replacement, tmp_path, scratch, monkeypatch, kill_at
):
    source, patient = replacement.after, replacement.patient
    place = Watched(f"memory://{tmp_path}/d")
    for name, data in replacement.objects.items():
        place.write(name, data)
    assert convert_all(replacement.before, place, scratch) == []
    # A claim of this process, which lives, is watched for a while before it is taken for dead.
    monkeypatch.setattr("lundprobe_zarr.conversion.notes.lease._DEAD_SECONDS", 0.2)
    old, new = replacement.old, replacement.new
    place.log.clear()
    place.kill_at = kill_at
    with pytest.raises(Killed):
        convert_all(source, place, scratch)
    place.kill_at = -1
    if place.exists(f"{store_path(patient)}/zarr.json"):
        seen = contents(place)
        assert seen == (old if kill_at <= _BEFORE_ROOT else new)
        assert (convert_all(source, place, scratch) == []) is (seen == new)
    else:
        with pytest.raises(LundProbeError, match="no store of patient"):
            open_cohort(place.url)[patient].tree  # noqa: B018
        assert convert_all(source, place, scratch) == [patient]
    assert contents(place) == new


def test_patient_that_cannot_be_sent_fails_alone(two_patients, empty_s3, two, scratch):
    place = empty_s3.beside("denied-one")
    first, second = patients(two_patients)

    def deny(method: str, path: str) -> int | None:
        return 403 if method == "PUT" and f"{first.patient_id}.zarr/sct/image" in path else None

    with empty_s3.traffic.failing(deny):
        failed, done = (
            convert_patient(p, place.location, "standard", scratch=scratch) for p in (first, second)
        )
    assert failed.status == "failed"
    assert "access denied" in str(failed.error)
    assert f"{first.patient_id}.zarr/sct/image" in str(failed.error)
    assert SECRET not in str(failed.error)
    assert done.status == "converted"
    assert finalise(place.location).left_out == (
        f"{first.patient_id}.zarr: not complete: it has no zarr.json",
    )
    assert are_current(place.location, (first, second), "standard") == [False, True]
    assert list(scratch.iterdir()) == []
    convert_all(two_patients, place.location, scratch)
    assert contents(place.location) == two


def denied(status: int, *methods: str) -> Callable[[str, str], int | None]:
    return lambda method, path: status if method in methods else None


@pytest.mark.parametrize("methods", [("PUT",), ("GET",), ("DELETE", "POST")])
def test_bucket_that_does_not_allow_it_is_refused_before_any_patient(
    phantom_source, empty_s3, methods
):
    place = empty_s3.beside("denied")
    failing = empty_s3.traffic.failing(denied(403, *methods))
    with empty_s3.traffic.counted() as asked, failing, pytest.raises(DatasetError) as raised:
        convert(take_inventory(phantom_source), place.location)
    assert "access denied" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert not [r for r in asked if ".zarr/" in r.path and r.method == "PUT"]


def test_places_that_make_no_sense(phantom_source, empty_s3, web, scratch, tmp_path):
    inventory = take_inventory(phantom_source)
    bucketless = Place("s3://no-such-bucket/x", empty_s3.options).location
    with pytest.raises(DatasetError, match="no such bucket"):
        convert(inventory, bucketless)
    with pytest.raises(UsageError, match="web server cannot be written"):
        convert(inventory, web.location)
    with pytest.raises(UsageError, match="memory of this process"):
        convert(inventory, Location("memory://x"))
    with pytest.raises(UsageError, match=r"--scratch .* is in the source"):
        convert(inventory, empty_s3.location, Options(scratch=inventory.root / "scratch"))
    with pytest.raises(UsageError, match="expected --scratch only for buckets"):
        convert(inventory, tmp_path / "local", Options(scratch=scratch))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        convert(inventory, empty_s3.location, Options(scratch=tmp_path / "file"))


def test_bucket_that_spoils_what_it_is_given_is_noticed(empty_s3):
    class Spoiling(Location):
        def write(self, relative: str, data: bytes) -> None:
            super().write(relative, data[:-1] + b"!")

    place = empty_s3.beside("spoiling")
    with pytest.raises(DatasetError, match="is not listed, or differs"):
        require_usable(Spoiling(place.url, place.options))
    assert place.location.find("") == {}


def test_scratch_of_the_dead_is_cleared_and_of_the_living_is_not(phantom_source, tmp_path, scratch):
    host = socket.gethostname()
    with subprocess.Popen(["true"]) as dead:
        pass
    names = {
        "dead": f"lundprobe-zarr-{host}-{dead.pid}-abc",
        "living": f"lundprobe-zarr-{host}-{os.getpid()}-abc",
        "elsewhere": "lundprobe-zarr-another-host-1-abc",
        "not ours": "lundprobe-zarr-notes",
    }
    for name in names.values():
        (scratch / name / "patients").mkdir(parents=True)
    result = convert_patient(
        patients(phantom_source)[0], Location(f"memory://{tmp_path}"), "standard", scratch=scratch
    )
    assert result.error is None
    left = {p.name for p in scratch.iterdir()}
    assert left == {names[n] for n in ("living", "elsewhere", "not ours")}


def test_scratch_is_for_the_user_alone(phantom_source, tmp_path, monkeypatch):
    seen = []

    def look(*arguments: object, **more: object) -> object:
        seen.extend(p.stat().st_mode & 0o777 for p in tmp_path.glob("lundprobe-zarr-*"))
        raise OSError("enough")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("lundprobe_zarr.conversion.arrays.patient._write_store", look)
    result = convert_patient(patients(phantom_source)[0], Location("memory://private"), "standard")
    assert "enough" in str(result.error)
    assert seen == [0o700]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provider", ["azure", "gcs"])
def test_other_providers_take_a_conversion(provider, request, two_patients, two, scratch):
    given = request.getfixturevalue(provider)
    place = given.beside("converted")
    require_usable(place.location, scratch)
    convert_all(two_patients, place.location, scratch)
    assert contents(place.location) == two
    assert convert_all(two_patients, place.location, scratch) == []
    nowhere = Location(f"{given.url.partition('://')[0]}://no-such-bucket/x", given.options)
    with pytest.raises(DatasetError, match="no such bucket"):
        require_usable(nowhere)
