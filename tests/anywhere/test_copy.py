"""Copying a dataset: verified, resumable, and never half a dataset to a reader."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import Place
from servers import file_server

from lundprobe_zarr import open_cohort
from lundprobe_zarr.cli import main
from lundprobe_zarr.errors import DamagedStoreError, DatasetError, NotADatasetError, UsageError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location
from tests.altered import rewrite


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def names(location: Location) -> set[str]:
    return set(location.find(""))


def published(dataset: Path) -> set[str]:
    """Objects of a dataset that its readers know of: no notes of the conversion."""
    return {n for n in names(Location(dataset)) if not n.startswith(".conversion")}


def test_a_damaged_table_is_named_with_what_mends_it(copied: Path, tmp_path: Path) -> None:
    with next((copied / "metadata" / "slices").iterdir()).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DatasetError, match=f"`lundprobe-zarr finalise {copied}`") as said:
        copy_dataset(Location(copied), Location(tmp_path / "target"))
    assert "--patients" not in str(said.value)


def test_options_of_a_destination_that_needs_none_are_those_of_the_source(
    empty_s3: Place, one_patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = one_patient / "dataset"
    place = empty_s3.beside("source-of-a-copy")
    assert not copy_dataset(Location(dataset), place.location).failures
    monkeypatch.setenv("LUNDPROBE_STORAGE_OPTIONS", json.dumps(place.options))
    assert run("copy", place.url, tmp_path / "back") == 0
    own = ("--source-options", json.dumps(place.options))
    assert run("copy", place.url, f"{place.url}-again", *own) == 0
    assert published(tmp_path / "back") == published(dataset)


class Killed(BaseException):
    """Ends a copy as a signal does."""


class Watched(Location):
    """A place that notes what is written and deleted, and may be killed at a write."""

    def __init__(self, url: str | Path, options: dict | None = None) -> None:
        super().__init__(url, options)
        self.log: list[str] = []
        self.kill_at: int | None = None

    def write(self, relative: str, data: bytes) -> None:
        if self.kill_at is not None and len(self.log) >= self.kill_at:
            raise Killed
        super().write(relative, data)
        self.log.append(relative)

    def delete(self, relative: str) -> None:
        super().delete(relative)
        self.log.append(f"-{relative}")


def test_copies_are_whole_and_a_second_sends_nothing(dataset, empty_s3, patient_ids):
    place = empty_s3.beside("twice")
    first = copy_dataset(Location(dataset), place.location)
    assert not first.failures
    assert names(place.location) == published(dataset)
    assert validate(place.location).problems == ()
    with empty_s3.traffic.counted() as asked:
        again = copy_dataset(Location(dataset), place.location)
    assert (again.sent, again.sent_bytes) == (0, 0)
    # But for the object by which it is seen whether anyone can read the place.
    assert {r.method for r in asked if "/probe-" not in r.path} <= {"GET", "HEAD"}
    assert [s.patient_id for s in again.stores] == patient_ids


def test_from_a_web_server_to_memory(web, dataset):
    target = Location("memory://from-web/d")
    assert not copy_dataset(web.location, target).failures
    assert names(target) == published(dataset)


def test_roots_and_manifest_come_last(dataset, tmp_path):
    target = Watched(tmp_path / "d")
    copy_dataset(Location(dataset), target, workers=3)
    assert target.log[-1] == "lundprobe.json"
    stores = [n for n in target.log if n.startswith("patients/")]
    tables = [n for n in target.log if n.startswith("metadata/")]
    assert target.log.index(tables[0]) > target.log.index(stores[-1])
    for patient in {n.split("/")[1] for n in stores}:
        of_patient = [n for n in stores if n.split("/")[1] == patient]
        assert of_patient[-1] == f"patients/{patient}/zarr.json"


@pytest.mark.parametrize("kill_at", [0, 1, 40, 150, 350])
def test_killed_anywhere_it_shows_nothing_and_goes_on(dataset, tmp_path, kill_at):
    target = Watched(tmp_path / "d")
    target.kill_at = kill_at
    with pytest.raises(Killed):
        copy_dataset(Location(dataset), target)
    with pytest.raises(NotADatasetError):
        open_cohort(tmp_path / "d")
    done = len(target.log)
    target.kill_at = None
    report = copy_dataset(Location(dataset), target)
    assert done + report.sent == len(published(dataset))
    assert validate(Location(tmp_path / "d")).problems == ()


def test_process_killed_at_work_is_gone_on_from(dataset, tmp_path):
    target = tmp_path / "d"
    command = [sys.executable, "-m", "lundprobe_zarr", "copy", str(dataset), str(target)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(target.glob("patients/*/mri/image/*")):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (target / "lundprobe.json").exists()
    (next(target.glob("patients/*")) / ".zarr.json.left").write_bytes(b"{")
    assert copy_dataset(Location(dataset), Location(target)).sent > 0
    assert names(Location(target)) == published(dataset)


def test_bad_objects_at_the_destination_are_sent_again(dataset, tmp_path, shard, extended):
    target = tmp_path / "d"
    copy_dataset(Location(dataset), Location(target))
    small = target / f"patients/{extended}.zarr/mri/z/c/0"
    for file in (target / shard, small):
        data = bytearray(file.read_bytes())
        data[3] ^= 1
        file.write_bytes(bytes(data))
    report = copy_dataset(Location(dataset), Location(target))
    assert report.sent == 2
    assert validate(Location(target), deep=True).problems == ()


def test_large_shards_are_compared_by_their_end_unless_asked(dataset, tmp_path, shard, monkeypatch):
    monkeypatch.setattr("lundprobe_zarr.integrity.copy._SMALL", 100)
    monkeypatch.setattr("lundprobe_zarr.integrity.copy._END", 64)
    target = tmp_path / "d"
    copy_dataset(Location(dataset), Location(target))
    data = bytearray((target / shard).read_bytes())
    data[3] ^= 1
    (target / shard).write_bytes(bytes(data))
    assert copy_dataset(Location(dataset), Location(target)).sent == 0
    assert copy_dataset(Location(dataset), Location(target), reverify=True).sent == 1


def test_store_that_changed_is_hidden_while_it_is_replaced(dataset, copied, tmp_path, extended):
    target = Watched(tmp_path / "d")
    copy_dataset(Location(dataset), target)
    target.delete("lundprobe.json")
    root = copied / f"patients/{extended}.zarr/zarr.json"
    root.write_bytes(root.read_bytes() + b"\n")
    (tmp_path / f"d/patients/{extended}.zarr/mri/zarr.json").write_bytes(b"{}")
    target.log.clear()
    copy_dataset(Location(copied), target)
    place = f"patients/{extended}.zarr"
    assert [n for n in target.log if place in n] == [
        f"-{place}/zarr.json",
        f"-{place}/mri/zarr.json",
        f"{place}/mri/zarr.json",
        f"{place}/zarr.json",
    ]


def test_another_dataset_is_not_overwritten_unasked(dataset, copied, tmp_path):
    rewrite(copied / "lundprobe.json", lambda manifest: manifest.update(created="later"))
    target = Watched(tmp_path / "d")
    copy_dataset(Location(dataset), target)
    target.log.clear()
    with pytest.raises(UsageError, match=r"another dataset.*--overwrite"):
        copy_dataset(Location(copied), target)
    assert target.log == []
    copy_dataset(Location(copied), target, overwrite=True)
    assert target.log == ["-lundprobe.json", "lundprobe.json"]


def test_what_is_no_datasets_is_replaced_only_when_asked(dataset, tmp_path):
    source, place = Location(dataset), tmp_path / "project"
    place.mkdir()
    (place / "README.md").write_text("mine")
    with pytest.raises(UsageError, match=r"not a dataset and has README\.md.*--overwrite"):
        copy_dataset(source, Location(place))
    assert [p.name for p in place.rglob("*")] == ["README.md"]
    assert (place / "README.md").read_text() == "mine"
    copy_dataset(source, Location(place), overwrite=True)
    assert names(Location(place)) == published(dataset)


def test_damaged_store_fails_alone_and_holds_back_the_manifest(copied, tmp_path, shard, extended):
    data = bytearray((copied / shard).read_bytes())
    data[3] ^= 1
    (copied / shard).write_bytes(bytes(data))
    report = copy_dataset(Location(copied), Location(tmp_path / "d"))
    assert [s.patient_id for s in report.failures] == [extended]
    assert shard in str(report.failures[0].error)
    assert "differ from those written at conversion" in str(report.failures[0].error)
    assert not (tmp_path / "d" / "lundprobe.json").exists()
    assert not (tmp_path / "d" / f"patients/{extended}.zarr/zarr.json").exists()
    assert len(list((tmp_path / "d" / "patients").glob("*/zarr.json"))) == len(report.stores) - 1


class Spoiling(Location):
    """A place where one shard never arrives as it was sent."""

    def write(self, relative: str, data: bytes) -> None:
        spoiled = relative.endswith("mri/image/c/0/0/0/0")
        super().write(relative, data[:-1] + b"?" if spoiled else data)


def test_what_arrives_altered_is_noticed(dataset, empty_s3):
    place = empty_s3.beside("spoiled")
    report = copy_dataset(Location(dataset), Spoiling(place.url, place.options))
    assert len(report.failures) == len(report.stores)
    assert "bytes that arrived differ" in str(report.failures[0].error)


def test_destinations_that_cannot_be_written(dataset, web, empty_s3, tmp_path):
    with pytest.raises(UsageError, match="web server cannot be written"):
        copy_dataset(Location(dataset), web.location)
    bucketless = Place("s3://no-such-bucket/x", empty_s3.options)
    with pytest.raises(DatasetError, match="no such bucket"):
        copy_dataset(Location(dataset), bucketless.location)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        copy_dataset(Location(dataset), Location(tmp_path / "file"))
    with pytest.raises(NotADatasetError):
        copy_dataset(Location(tmp_path / "nothing"), Location(tmp_path / "d"))


def test_copy_of_a_dataset_into_itself_is_refused(copied, tmp_path, empty_s3):
    before = names(Location(copied))
    (tmp_path / "link").symlink_to(copied)
    for inside in (copied, copied / "sub", tmp_path / "link", tmp_path / "link" / "a" / "b"):
        with pytest.raises(UsageError, match="itself or lies within it; expected a place outside"):
            copy_dataset(Location(copied), Location(inside))
    assert names(Location(copied)) == before
    url, options = empty_s3.url.rstrip("/"), empty_s3.options
    for inside in (url, f"{url}/", f"{url}/sub"):
        with pytest.raises(UsageError, match="itself or lies within it"):
            copy_dataset(Location(url, options), Location(inside, {**options, "anon": False}))
    elsewhere = {**options, "endpoint_url": "http://127.0.0.1:1", "client_kwargs": {}}
    for other in (Location(f"{url}-2", options), Location(url, elsewhere)):
        with pytest.raises(NotADatasetError):  # which comes next: it is no copy into itself
            copy_dataset(Location(url, options), other)


def test_web_server_that_loses_an_object(copied, tmp_path, shard, extended):
    (copied / shard).unlink()
    with file_server(copied) as (url, _):
        report = copy_dataset(Location(url), Location(tmp_path / "d"))
        assert [s.patient_id for s in report.failures] == [extended]
        with pytest.raises(DamagedStoreError, match="not there"):
            open_cohort(url)[extended].mri.image.values  # noqa: B018


def test_command_reports_and_exits(dataset, copied, tmp_path, shard, capsys):
    report = tmp_path / "report.json"
    assert run("copy", dataset, tmp_path / "d", "--workers", "2", "--report", report) == 0
    assert "lundprobe-zarr validate" in capsys.readouterr().out
    assert json.loads(report.read_text())["complete"] is True
    assert run("copy", dataset, tmp_path / "d") == 0
    assert "was there" in capsys.readouterr().out
    (copied / shard).unlink()
    assert run("copy", copied, tmp_path / "e", "--report", report) == 1
    assert "No manifest was written" in capsys.readouterr().out
    assert json.loads(report.read_text())["complete"] is False
    assert run("copy", tmp_path / "nothing", tmp_path / "f") == 3
    assert run("copy", dataset, "https://example.invalid/x") == 2


def test_names_that_lead_out_of_a_dataset_are_refused(copied, tmp_path, extended):
    root = copied / f"patients/{extended}.zarr/zarr.json"

    def lead_out(metadata):
        nodes = metadata["consolidated_metadata"]["metadata"]
        nodes["../../../../outside"] = nodes.pop("mri/z")

    rewrite(root, lead_out)
    report = copy_dataset(Location(copied), Location(tmp_path / "to" / "d"))
    assert "not the metadata of a complete store" in str(report.failures[0].error)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["d"]
