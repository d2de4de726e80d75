"""`finalise --rebuild` upgrades datasets of older schemas from the stores alone."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.run.compatibility import require_compatible
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import Command, DamagedStoreError, DatasetError, QueryError, UsageError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store

DATA = Path(__file__).parents[1] / "data"
BASE, EXTENDED = "oldAcq_00000000000000b2", "newAcq_00000000000000a1"


def unpacked(version: int, folder: Path) -> Path:
    with tarfile.open(DATA / f"schema-{version}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A dataset of schema 1."""
    return unpacked(1, tmp_path / "old")


def attributes(dataset: Path | Location) -> list[Any]:
    """What a cohort's trees say of themselves, but for versions and times."""
    found = []
    for patient in lp.open_cohort(dataset):
        for node in patient.tree.subtree:
            own = {k: v for k, v in node.attrs.items() if k not in VARYING}
            found.append((node.path, own, {n: v.attrs for n, v in node.variables.items()}))
    return found


VARYING = ("schema_version", "converter", "created", "self_sha256", "ome_version", "t2w_window")


def test_after_it_all_is_sound_and_as_converted_by_this_version(old: Path, tmp_path: Path) -> None:
    before = open_manifest(Location(old))
    opened = attributes(old)
    assert finalise(old, rebuild=True).upgraded == (EXTENDED, BASE)
    after = open_manifest(Location(old))
    assert (before.schema_version, after.schema_version) == (1, SCHEMA_VERSION)
    assert before.content is not None
    assert after.content is not None
    assert after.content.patients == before.content.patients
    assert validate(Location(old), deep=True).problems == ()
    new = unpacked(SCHEMA_VERSION, tmp_path / "new")
    assert attributes(old) == attributes(new) == opened
    assert finalise(old, rebuild=True).upgraded == ()


def test_it_can_be_killed_at_any_write(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, real = 0, Location.write

    def write(self: Location, relative: str, data: bytes) -> None:
        nonlocal left
        left -= relative.startswith("patients/")
        if left < 0:
            raise KeyboardInterrupt
        real(self, relative, data)

    monkeypatch.setattr(Location, "write", write)
    killed = 0
    while killed < 100:
        try:
            finalise(old, rebuild=True)
            break
        except KeyboardInterrupt:
            killed += 1
            assert len(attributes(old)) > 10
            left = killed * 7  # each run gets a little further
    assert killed > 2
    assert validate(Location(old), deep=True).problems == ()


def test_a_store_in_memory_is_upgraded_too(old: Path) -> None:
    bucket = Location("memory://upgrade/dataset")
    for file in (f for f in old.rglob("*") if f.is_file()):
        bucket.write(file.relative_to(old).as_posix(), file.read_bytes())
    finalise(bucket, rebuild=True)
    assert validate(bucket, deep=True).problems == ()
    assert open_store(bucket, BASE).attributes["schema_version"] == SCHEMA_VERSION


def test_without_rebuild_nothing_is_written(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (old / "lundprobe.json").read_bytes()
    with pytest.raises(DatasetError, match=r"is of schema version 1; expected 2.*--rebuild"):
        finalise(old)
    assert (old / "lundprobe.json").read_bytes() == before
    main_ended(["finalise", str(old), "--rebuild"])
    assert "Upgraded 2 stores to schema version 2" in capsys.readouterr().out


def main_ended(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_convert_neither_mixes_nor_converts_all_again_unasked(old: Path) -> None:
    manifest = json.loads((old / "lundprobe.json").read_text())
    assert manifest["schema_version"] == 1

    class Nobody:
        unchosen = patients = other_shares = ()
        strips_headers = False
        levels = 0

    for overwrite in (False, True):  # of a source without these patients, who would stay
        with pytest.raises(UsageError, match=r"of schema version 1.*finalise .* --rebuild"):
            require_compatible(Nobody(), Location(old), "standard", overwrite)  # type: ignore[arg-type]
    (old / "lundprobe.json").unlink()
    with pytest.raises(UsageError, match="of schema version 1"):
        require_compatible(Nobody(), Location(old), "standard", False)  # type: ignore[arg-type]


def test_a_column_that_came_later_says_how_to_get_it(old: Path) -> None:
    cohort = lp.open_cohort(old)
    with pytest.raises(QueryError, match="no column 'dose_covered_pct'") as raised:
        cohort.sql("SELECT avg(dose_covered_pct) FROM clinical")
    assert raised.value.command == Command("finalise", ("--rebuild",))
    assert len(cohort.sql("SELECT * FROM clinical"))
    finalise(old, rebuild=True)
    rows = lp.open_cohort(old).sql("SELECT dose_covered_pct, mask_sha256 FROM clinical")
    assert rows.notna().all(axis=None)


def ome_of(dataset: Path) -> dict[str, Any]:
    """The attribute `ome` of every group of every store, by place."""
    found = {}
    for file in sorted(dataset.glob("patients/**/zarr.json")):
        said = json.loads(file.read_text())["attributes"]
        if "ome" in said:
            found[file.parent.relative_to(dataset).as_posix()] = said["ome"]
    return found


def test_ome_is_added_to_stores_that_came_before_it(tmp_path: Path) -> None:
    assert _upgraded_ome(1, tmp_path / "1") == _upgraded_ome(2, tmp_path / "2")


def _upgraded_ome(version: int, folder: Path) -> dict[str, Any]:
    """What an upgrade adds to stores of a version, once it is known that it adds nothing else."""
    dataset = unpacked(version, folder)
    assert ome_of(dataset) == {}
    before = {f: f.read_bytes() for f in dataset.glob("patients/**/c/**/*") if f.is_file()}
    content = open_manifest(Location(dataset)).content
    assert finalise(dataset, rebuild=True).upgraded == (EXTENDED, BASE)
    ome = ome_of(dataset)
    assert {p.partition(".zarr/")[2] for p in ome} >= {"mri", "mri/clinical", "sct", "dose"}
    assert all(f.read_bytes() == data for f, data in before.items())
    now = open_manifest(Location(dataset)).content
    assert content is not None
    assert now is not None
    assert now.patients == content.patients
    assert validate(Location(dataset), deep=True).problems == ()
    assert finalise(dataset, rebuild=True).upgraded == ()
    return ome


def test_a_damaged_image_does_not_hinder_it(tmp_path: Path) -> None:
    """The metadata is upgraded; the tables then need the image, and the error names its shard."""
    dataset = unpacked(2, tmp_path / "d")
    shard = dataset / f"patients/{BASE}.zarr/mri/image/c/0/0/0/0"
    shard.write_bytes(b"\1" * shard.stat().st_size)
    with pytest.raises(DamagedStoreError, match="mri/image"):
        finalise(dataset, rebuild=True)
    window = ome_of(dataset)[f"patients/{BASE}.zarr/mri"]["omero"]["channels"][0]["window"]
    assert (window["start"], window["end"]) == (0.0, window["max"])
