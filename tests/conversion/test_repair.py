"""Repair: just what is damaged is converted again, and what is sound is not touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trees import LIGHT, MRI, NEW, OLD, edit, snapshot, write_patient, write_side_files

from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.repair import Repair, find_damage, repair
from lundprobe_zarr.conversion.source.inventory import take_inventory, without_header_text
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import NotADatasetError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location

RECTUM = "mri/clinical/mask/c/0/0/0/0"


@dataclass(frozen=True)
class Pair:
    """A source of two patients and the dataset it was converted into."""

    source: Path
    dataset: Path

    @property
    def location(self) -> Location:
        return Location(self.dataset)

    def store(self, patient_id: str = NEW) -> Path:
        return self.dataset / "patients" / f"{patient_id}.zarr"

    def repair(self, deep: bool = True) -> Repair:
        damage = find_damage(self.location, deep)
        return repair(take_inventory(self.source), self.location, damage)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pair")
    for patient_id in (NEW, OLD):
        write_patient(home / "source", patient_id, only=LIGHT)
    write_side_files(home / "source", patients=(NEW, OLD))
    for patient in take_inventory(home / "source").patients:
        assert convert_patient(patient, home / "dataset", "standard").error is None
    finalise(home / "dataset")
    return home


@pytest.fixture
def pair(converted: Path, tmp_path: Path) -> Pair:
    for name in ("source", "dataset"):
        shutil.copytree(converted / name, tmp_path / name)
    return Pair(tmp_path / "source", tmp_path / "dataset")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def content(pair: Pair) -> object:
    return json.loads((pair.dataset / "lundprobe.json").read_text())["content"]


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_a_store_that_finalise_left_out_is_found_and_mended(pair: Pair, damage: str) -> None:
    before = content(pair)
    root = pair.store() / "zarr.json"
    root.write_text("{") if damage == "garbage" else root.unlink()
    assert len(finalise(pair.dataset).left_out) == 1
    (problem,) = validate(pair.location).problems
    assert problem.patient_id == NEW
    assert pair.repair(deep=False).left == ()
    assert content(pair) == before


def test_a_store_in_the_place_of_a_patient_there_is_none_of(pair: Pair) -> None:
    nobody = "newAcq_00000000000000aa"
    shutil.copytree(pair.store(), pair.store(nobody))
    (problem,) = validate(pair.location).problems
    assert f"the store of patient {NEW}; expected that of {nobody}" in problem.finding
    done = pair.repair(deep=False)
    assert "if there is no such patient, remove the store" in str(done.failures[0].error)
    shutil.rmtree(pair.store(nobody))
    assert validate(pair.location).problems == ()


def test_a_sound_dataset_is_left_as_it_is(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(pair.dataset)
    report = tmp_path / "new" / "report.json"
    assert run("repair", pair.source, pair.dataset, "--deep", "--report", report) == 0
    assert "Nothing to repair" in capsys.readouterr().out
    assert json.loads(report.read_text())["sound"] is True
    assert snapshot(pair.dataset) == before


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of a shard": lambda store: flip(store / RECTUM),
    "a shard cut short": lambda store: (store / RECTUM).write_bytes(b"short"),
    "a shard gone": lambda store: (store / RECTUM).unlink(),
    "its root gone": lambda store: (store / "zarr.json").unlink(),
    "a label gone": lambda store: (store / "mri/clinical/structure/c/0").unlink(),
    "a bit of an axis": lambda store: flip(store / "mri/z/c/0"),
    "all of it gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_what_is_damaged_is_converted_again_and_nothing_else(pair: Pair, damage: str) -> None:
    before, sound = content(pair), snapshot(pair.store(OLD))
    DAMAGE[damage](pair.store())
    assert validate(pair.location, deep=True).problems
    done = pair.repair()
    assert [(r.patient_id, r.status) for r in done.results] == [(NEW, "converted")]
    assert (done.left, done.changed) == ((), ())
    assert snapshot(pair.store(OLD)) == sound
    assert validate(pair.location, deep=True).problems == ()
    assert content(pair) == before


@pytest.mark.parametrize("lost", ["lundprobe.json", "metadata/slices/base-00000.parquet"])
def test_tables_are_written_anew_without_converting(pair: Pair, lost: str) -> None:
    before, stores = content(pair), snapshot(pair.dataset / "patients")
    (pair.dataset / lost).unlink()
    done = pair.repair(deep=False)
    assert (done.results, done.left) == ((), ())
    assert (content(pair), snapshot(pair.dataset / "patients")) == (before, stores)


def test_a_store_lost_with_the_tables_that_named_it_is_remembered(pair: Pair) -> None:
    before = content(pair)
    (pair.dataset / "lundprobe.json").unlink()
    shutil.rmtree(pair.store())
    done = pair.repair(deep=False)
    assert [r.patient_id for r in done.results] == [NEW]
    assert content(pair) == before


def test_all_stores_lost_are_converted_as_they_were(pair: Pair) -> None:
    for patient in without_header_text(take_inventory(pair.source)).patients:
        assert convert_patient(patient, pair.dataset, "compact").error is None
    finalise(pair.dataset)
    before = content(pair)
    for lost in ("patients", "metadata"):
        shutil.rmtree(pair.dataset / lost)
    (pair.dataset / "lundprobe.json").unlink()
    done = pair.repair(deep=False)
    assert {r.status for r in done.results} == {"converted"}
    manifest = json.loads((pair.dataset / "lundprobe.json").read_text())
    assert (manifest["precision"], manifest["headers_stripped"]) == ("compact", True)
    assert manifest["content"] == before


def test_a_measure_that_is_wrong_is_measured_again(pair: Pair) -> None:
    before, stores = content(pair), snapshot(pair.dataset / "patients")
    for file in (
        pair.dataset / "metadata/structures/base-00000.parquet",
        pair.dataset / f".conversion/structures/{NEW}.parquet",
    ):
        table = pq.read_table(file)
        place, start = table.column_names.index("bbox_start"), [[0, 0, 0]] * len(table)
        field = table.schema.field(place)
        pq.write_table(table.set_column(place, field, pa.array(start, field.type)), file)
    done = pair.repair()
    assert (done.results, done.left) == ((), ())
    assert validate(pair.location, deep=True).problems == ()
    assert (content(pair), snapshot(pair.dataset / "patients")) == (before, stores)


def test_a_patient_the_source_lacks_fails_and_the_others_are_mended(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for patient_id in (NEW, OLD):
        (pair.store(patient_id) / RECTUM).unlink()
    shutil.rmtree(pair.source / "basePart" / OLD)
    report = tmp_path / "report.json"
    assert run("repair", pair.source, pair.dataset, "--report", report) == 1
    assert f"{OLD}: not in" in capsys.readouterr().out
    said = json.loads(report.read_text())
    assert {r["patient_id"]: r["status"] for r in said["converted"]} == {
        NEW: "converted",
        OLD: "failed",
    }
    assert {p["patient_id"] for p in said["left"]} == {OLD}
    assert said["sound"] is False


def test_it_says_when_the_source_is_not_what_it_was(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(pair.source / "basePart" / NEW / MRI, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    shutil.rmtree(pair.store())
    assert run("repair", pair.source, pair.dataset) == 0
    out = capsys.readouterr().out
    assert "hold the new data now" in out
    assert NEW in out.split("hold the new data now")[1]
    assert run("repair", pair.source, pair.dataset) == 0
    out = capsys.readouterr().out
    assert "Nothing to repair" in out
    assert f"lundprobe-zarr repair SOURCE {pair.dataset} --deep" in out


def test_places_that_cannot_be_repaired(pair: Pair, tmp_path: Path) -> None:
    assert run("repair", pair.source, "https://example.invalid/x") == 2
    with pytest.raises(NotADatasetError):
        find_damage(Location(tmp_path / "nothing"))
    assert run("repair", tmp_path / "no-source", pair.dataset) == 2


def test_a_lost_label_is_found_although_tables_were_written_since(pair: Pair) -> None:
    (pair.store() / "mri/z/c/0").unlink()
    finalise(pair.dataset)  # which takes the store's size as it finds it
    (problem,) = validate(pair.location).problems
    assert problem.patient_id == NEW
    assert problem.where.endswith("mri/z/c/0")
    assert pair.repair(deep=False).left == ()
