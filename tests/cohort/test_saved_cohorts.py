"""Cohorts saved to a file that can be cited, and opened again on the same dataset only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lundprobe_zarr as lp
from benchmarks.cohort import simulate
from lundprobe_zarr.cohort import Cohort, load_cohort
from lundprobe_zarr.cohort.saved import SavedCohort
from lundprobe_zarr.dataset.identity import DatasetIdentity
from lundprobe_zarr.errors import UsageError
from tests.altered import rewrite


def test_a_saved_cohort_is_the_same_when_opened(
    many: Cohort, simulated: Path, tmp_path: Path
) -> None:
    cohort = many.where("protocol = 'newAcq'").where("PenileBulb.volume_cc > 70")[:20]
    cohort.save(tmp_path / "cohort.json")
    again = lp.load_cohort(tmp_path / "cohort.json", simulated)
    assert again.ids == cohort.ids
    assert again.selection == cohort.selection
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "cohort.json").read_text()


def test_the_file_says_what_a_paper_needs_and_no_more(many: Cohort, tmp_path: Path) -> None:
    many.where("part = 'extended'").save(tmp_path / "cohort.json")
    saved = json.loads((tmp_path / "cohort.json").read_text())
    assert set(saved) == {
        "kind", "format_version", "dataset", "selection", "patient_ids", "sha256",
    }  # fmt: skip
    assert saved["selection"] == ["part = 'extended'"]
    assert saved["dataset"]["patients"] == 467
    assert saved["dataset"]["doi"] == many.manifest.doi


def test_neither_url_nor_options_are_saved(simulated: Path, tmp_path: Path) -> None:
    options = {"auto_mkdir": False, "secret_key": "hunter2"}
    cohort = lp.open_cohort(f"file://{simulated}", options)
    cohort.save(tmp_path / "cohort.json")
    text = (tmp_path / "cohort.json").read_text()
    assert "hunter2" not in text
    assert str(simulated) not in text
    assert "hunter2" not in repr(cohort) + repr(cohort[0])


def test_finalising_again_changes_nothing(many: Cohort, simulated: Path, tmp_path: Path) -> None:
    many[:5].save(tmp_path / "cohort.json")
    copy = shutil.copytree(simulated, tmp_path / "copy")
    change_manifest(copy, created="2031-01-01T00:00:00+00:00", converter="later")
    assert load_cohort(tmp_path / "cohort.json", copy).ids == many.ids[:5]


def change_manifest(dataset: Path, **changes: Any) -> None:
    rewrite(dataset / "lundprobe.json", lambda manifest: manifest.update(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "lossless"}, "precision 'standard', not 'lossless'"),
        ({"doi": "10.1/x"}, "doi '10.23698/aida/lund-probe', not '10.1/x'"),
        ({"name": "other", "precision": "compact"}, "name .*; precision 'standard'"),
    ],
)
def test_another_dataset_is_refused_and_the_difference_named(
    many: Cohort, simulated: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    many[:5].save(tmp_path / "cohort.json")
    copy = shutil.copytree(simulated, tmp_path / "copy")
    change_manifest(copy, **changes)
    with pytest.raises(UsageError, match=message):
        load_cohort(tmp_path / "cohort.json", copy)


def test_absent_patients_are_refused_and_named(many: Cohort, dataset: Path, tmp_path: Path) -> None:
    many[:5].save(tmp_path / "cohort.json")
    with pytest.raises(UsageError, match=rf"5 of its 5 patients are not in .*{min(many.ids[:5])}"):
        load_cohort(tmp_path / "cohort.json", dataset)


def test_the_same_patients_from_other_files_are_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        simulate(tmp_path / name, 13, seed)
    one = lp.open_cohort(tmp_path / "a")
    one[:0].save(tmp_path / "cohort.json")
    with pytest.raises(UsageError, match="not the same ones or not the same files"):
        load_cohort(tmp_path / "cohort.json", tmp_path / "b")


def _newer(raw: dict[str, Any]) -> None:
    raw["format_version"] = 99


def _without_ids(raw: dict[str, Any]) -> None:
    del raw["patient_ids"]


def _another_patient(raw: dict[str, Any]) -> None:
    raw["patient_ids"].pop()


def _another_kind(raw: dict[str, Any]) -> None:
    raw["kind"] = "lundprobe splits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_newer, "format version 99; .* upgrade"),
        (_without_ids, "patient_ids"),
        (_another_patient, "changed or damaged since it was saved"),
        (_another_kind, "kind 'lundprobe splits'; expected 'lundprobe cohort'"),
    ],
)
def test_a_changed_file_is_refused(
    many: Cohort,
    simulated: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    path = tmp_path / "cohort.json"
    many[:5].save(path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=message):
        load_cohort(path, simulated)


@pytest.mark.parametrize("text", [None, "", "[]", '{"kind": "lundprobe cohort"}', "{", "\udcff"])
def test_what_is_no_such_file_is_refused(simulated: Path, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "cohort.json"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"cohort\.json: "):
        load_cohort(path, simulated)


def test_the_hash_is_the_same_for_ever() -> None:
    identity = DatasetIdentity(
        name="LUND-PROBE",
        doi="10.23698/aida/lund-probe",
        schema_version=1,
        precision="standard",
        patients=2,
        digest="0" * 64,
        created="2025-01-01T00:00:00+00:00",
    )
    saved = SavedCohort(dataset=identity, selection=["n > 0"], patient_ids=["a", "b"])
    assert saved.checksum() == "20a6b63f99961c1fd9c31898bb9b0f209e140dd4e74a854dbfc8ad5cfe9108a2"
