"""`measure`: comparisons of a dataset's segmentations, resumed, published, kept and validated."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trees import LIGHT, NEW, OLD, convert_tree, patch, write_patient, write_side_files

import lundprobe_zarr as lp
from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.lease import lease_patients
from lundprobe_zarr.conversion.run.measure import MeasureOptions, MeasureProgress, measure
from lundprobe_zarr.conversion.source.inventory import select, take_inventory
from lundprobe_zarr.conversion.tables.fragments import save_compared
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.compared import (
    NNUNET,
    PAIRS,
    Segmentation,
    compare_store,
    pairs,
    segmentations,
)
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import (
    DatasetError,
    NotADatasetError,
    QueryError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.integrity.compared import compared_findings
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.tables import COMPARED
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.files import expected_files

OTHER = "newAcq_00000000000000c3"
WHOLE = [
    NNUNET,
    *(Segmentation("nnunet_fold", fold=n) for n in range(10)),
    *(Segmentation("observer", f"obs{o}", s) for s in (1, 2) for o in "BCDE"),
]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two extended patients and a base one: `source` and `dataset`, not measured. Read-only."""
    home = tmp_path_factory.mktemp("measured")
    compared = tuple(p for p, r in expected_files("extended").items() if r.is_extended)
    for patient, part in ((NEW, "extended"), (OTHER, "extended"), (OLD, "base")):
        write_patient(home / "source", patient, part, (*LIGHT, *compared))
    write_side_files(home / "source", "extended", (NEW, OTHER))
    write_side_files(home / "source", "base", (OLD,))
    done = convert_tree(home / "source", home / "dataset")
    assert {r.status for r in done.values()} == {"converted"}
    finalise(home / "dataset")
    return home


@pytest.fixture
def dataset(converted: Path, tmp_path: Path) -> Location:
    """A copy of the dataset, not measured."""
    return Location(shutil.copytree(converted / "dataset", tmp_path / "dataset"))


def measured_here(dataset: Location, *patients: str) -> None:
    """Measure patients in this process, as a task does."""
    for patient in patients:
        store = open_store(dataset, patient)
        save_compared(dataset, store, compare_store(dataset, store))


def rows(dataset: Location, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(dataset, open_manifest(dataset), name).to_pylist()
    return found


def test_a_patient_who_cannot_be_read_fails_alone_and_is_measured_when_mended(
    dataset: Location,
) -> None:
    unmeasured = open_manifest(dataset).content
    assert unmeasured is not None
    shard = next(dataset.local(f"patients/{NEW}.zarr/mri/observers/mask").rglob("c/*/*/*/*/*/0"))
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-3])
    heard: list[Any] = []
    listen = MeasureProgress(lambda n: heard.append(n), lambda i, error: heard.append((i, error)))
    report = measure(dataset, MeasureOptions(workers=1), listen)
    assert (report.measured, list(report.failed)) == ([OTHER], [NEW])
    assert "mri/observers/mask" in report.failed[NEW]
    assert heard[0] == 2
    assert sorted(heard[1:]) == [(NEW, report.failed[NEW]), (OTHER, None)]
    assert report.published is not None
    assert report.published.unmeasured == (NEW,)
    assert not open_manifest(dataset).tables.keys() & set(COMPARED)
    shard.write_bytes(sound)
    report = measure(dataset)
    assert (report.measured, report.skipped, report.failed) == ([NEW], [OTHER], {})
    manifest = open_manifest(dataset)
    assert manifest.content is not None
    assert manifest.content.sha256 == unmeasured.sha256  # the same data, with or without
    for name in COMPARED:
        (file,) = manifest.tables[name]["extended"]
        assert list(manifest.tables[name]) == ["extended"]  # of the base patient there is no row
        assert manifest.table_sha256[file]
        assert manifest.content.tables[name]["extended"]
    assert validate(dataset, deep=True).problems == ()
    again = measure(dataset)
    assert (again.measured, again.skipped) == ([], [NEW, OTHER])
    assert open_manifest(dataset).content == manifest.content


def test_killed_it_goes_on_with_the_other_patients(dataset: Location) -> None:
    notes = dataset.local(".conversion/agreement")
    command = [sys.executable, "-m", "lundprobe_zarr", "measure", dataset.url, "--workers", "1"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not list(notes.glob("*.parquet")) and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: as if the power were cut
    assert process.returncode == -signal.SIGKILL
    saved = {p.name: p.stat().st_mtime_ns for p in notes.glob("*.parquet")}
    assert saved
    assert not open_manifest(dataset).tables.keys() & set(COMPARED)
    report = measure(dataset)
    whole = [i for i in (NEW, OTHER) if dataset.exists(f".conversion/uncertainty/{i}.parquet")]
    assert whole == [NEW, OTHER]
    assert len(report.measured) + len(report.skipped) == 2
    for patient in report.skipped:
        file = f"{patient}.parquet"
        assert (notes / file).stat().st_mtime_ns == saved[file]
    assert validate(dataset).problems == ()


def test_a_share_publishes_nothing_and_finalise_does_when_all_are_done(dataset: Location) -> None:
    measured_here(dataset, NEW)
    published = finalise(dataset.local())
    assert published.unmeasured == (OTHER,)
    assert not open_manifest(dataset).tables.keys() & set(COMPARED)
    share = measure(dataset, MeasureOptions(share=(1, 2), publish=False))
    assert (share.skipped, share.measured, share.published) == ([OTHER], [], None) or (
        share.skipped == [NEW]
    )
    measured_here(dataset, OTHER)
    assert finalise(dataset.local()).unmeasured == ()
    assert len(rows(dataset, "agreement")) == 2 * 2 * 96


def test_before_it_is_measured_readers_are_told_to(dataset: Location) -> None:
    cohort = open_cohort(dataset.local())
    with pytest.raises(UnknownLabelError, match=r"no table 'agreement'.*lundprobe-zarr measure "):
        cohort.table("agreement")
    with pytest.raises((QueryError, UnknownLabelError), match="lundprobe-zarr measure "):
        cohort.sql("SELECT * FROM uncertainty")
    assert cohort.sql("SELECT count(*) AS n FROM patients").n[0] == 3


def test_without_extended_patients_there_is_nothing_to_measure(dataset: Location) -> None:
    for patient in (NEW, OTHER):
        shutil.rmtree(dataset.local(f"patients/{patient}.zarr"))
    report = measure(dataset)
    assert (report.measured, report.skipped) == ([], [])
    assert open_manifest(dataset).tables["agreement"] == {}
    assert open_cohort(dataset.local()).sql("SELECT * FROM agreement").empty
    assert validate(dataset).problems == ()


def test_a_copy_without_notes_keeps_the_tables_of_unchanged_patients(
    dataset: Location, tmp_path: Path
) -> None:
    measured_here(dataset, NEW, OTHER)
    finalise(dataset.local())
    copy = Location(tmp_path / "copy")
    assert not copy_dataset(dataset, copy).failures
    assert not copy.local(".conversion").exists()
    assert finalise(copy.local()).unmeasured == ()
    for name in COMPARED:
        assert rows(copy, name) == rows(dataset, name)


def test_converted_again_from_the_same_files_rows_stay_from_others_they_go(
    converted: Path, dataset: Location
) -> None:
    measured_here(dataset, NEW, OTHER)
    before = finalise(dataset.local()).manifest.content
    convert_one(converted / "source", dataset)
    assert finalise(dataset.local()).unmeasured == ()
    assert open_manifest(dataset).content == before
    changed = dataset.local().parent / "source"
    shutil.copytree(converted / "source", changed)
    mask = changed / "extendedPart" / NEW / "MR_StorT2/observerData/mask_Rectum_step1_obsB.nii.gz"
    shutil.copyfile(mask.with_name("mask_Rectum_step1_obsC.nii.gz"), mask)
    convert_one(changed, dataset)
    assert finalise(dataset.local()).unmeasured == (NEW,)


def convert_one(source: Path, dataset: Location) -> None:
    (patient,) = select(take_inventory(source), [NEW]).patients
    assert convert_patient(patient, dataset.local(), "standard").error is None


def test_mistakes_are_refused_before_anything_is_done(dataset: Location, tmp_path: Path) -> None:
    for options, said in (
        (MeasureOptions(workers=0), "--workers 0"),
        (MeasureOptions(share=(3, 2)), "part 3/2"),
        (
            MeasureOptions(patients=["newAcq_00000000000000ff"]),
            "no patient newAcq_00000000000000ff",
        ),
        (MeasureOptions(patients=[OLD]), "no segmentations of network"),
    ):
        with pytest.raises(UsageError, match=said):
            measure(dataset, options)
    with pytest.raises(NotADatasetError, match="convert"):
        measure(Location(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    with (
        lease_patients(dataset, [NEW]),
        pytest.raises(UsageError, match="another conversion is running"),
    ):
        measure(dataset)


def test_a_grid_without_right_angles_is_refused(dataset: Location) -> None:
    store = open_store(dataset, NEW)
    sheared = np.array(store.groups["mri"]["affine"])
    sheared[0, 1] = 0.3
    groups = store.groups | {"mri": store.groups["mri"] | {"affine": sheared.tolist()}}
    with pytest.raises(DatasetError, match="right angles"):
        compare_store(dataset, replace(store, groups=groups))


def test_a_patient_on_an_askew_grid_is_left_out_and_does_not_hold_back_the_others(
    converted: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(converted / "source", tmp_path / "source")
    folder = source / "extendedPart" / NEW
    for file in (*folder.glob("MR_StorT2/**/*.nii.gz"), folder / "sCT/image_reg2MRI.nii.gz"):
        patch("srow_x", -0.5, 0, 0.15, 10)(file)
        patch("qform_code", 0)(file)
    done = convert_tree(source, tmp_path / "dataset")
    assert {r.status for r in done.values()} == {"converted"}, [r.error for r in done.values()]
    finalise(tmp_path / "dataset")
    dataset = Location(tmp_path / "dataset")
    report = measure(dataset)
    assert report.measured == [OTHER]
    assert list(report.failed) == [NEW]
    assert "right angles" in report.failed[NEW]
    assert report.published is not None
    assert report.published.unmeasured == ()
    for table in COMPARED:
        assert {row["patient_id"] for row in rows(dataset, table)} == {OTHER}
    assert not validate(dataset, deep=True).problems
    again = measure(dataset)
    assert (again.measured, again.skipped, list(again.failed)) == ([], [OTHER], [NEW])
    cohort = open_cohort(tmp_path / "dataset")
    assert set(lp.agreement(cohort, "Rectum", compute=True)["patient_id"]) == {OTHER}
    with pytest.raises(DatasetError, match="right angles"):
        lp.agreement(cohort[NEW])


class TestPairs:
    def test_of_a_whole_patient(self) -> None:
        found = pairs(WHOLE)
        kinds = [kind for kind, _, _ in found]
        assert list(dict.fromkeys(kinds)) == list(PAIRS)
        assert {k: kinds.count(k) for k in PAIRS} == dict(
            zip(PAIRS, (12, 8, 4, 10, 16, 4, 40, 2), strict=True)
        )
        assert len(set(found)) == len(found)
        assert all(a.step == b.step for kind, a, b in found if kind == "observer_observer")
        assert all((a.step, b.step) == (1, 2) for k, a, b in found if k.endswith("step1_step2"))

    def test_of_what_is_there(self) -> None:
        without = [s for s in WHOLE if s.observer in (None, "obsB")]
        kinds = {kind for kind, _, _ in pairs(without)}
        assert kinds == {"nnunet_observer", "step1_step2", "fold_nnunet"}
        assert {k for k, _, _ in pairs([s for s in WHOLE if s != NNUNET])} == {
            "observer_observer", "step1_step2", "consensus_observer", "consensus_fold",
            "consensus_step1_step2",
        }  # fmt: skip
        first = [s for s in WHOLE if s.step != 2]
        assert "consensus_step1_step2" not in {k for k, _, _ in pairs(first)}
        assert pairs([]) == []

    def test_rows_are_those_that_the_store_has_files_for(
        self, converted: Path, tmp_path: Path
    ) -> None:
        source = tmp_path / "lacking"
        lacking = ("mask_Rectum_nnUNet.nii.gz", "mask_CTVT_427_nnUNet_uncertaintyMap.nii.gz")
        shutil.copytree(converted / "source" / "extendedPart" / NEW, source / "extendedPart" / NEW)
        for name in lacking:
            (source / "extendedPart" / NEW / "MR_StorT2/nnUNetOutput" / name).unlink()
        convert_tree(source, source / "dataset")
        location = Location(source / "dataset")
        store = open_store(location, NEW)
        found = compare_store(location, store)
        assert NNUNET not in segmentations(store)["Rectum"]
        about = {(r["structure"], r["estimate"]) for r in found["uncertainty"]}
        assert about == {("CTVT_427", "fold_mean")}  # no map, and no start of edits of the rectum
        assert all(r["map_mean"] is None for r in found["uncertainty"])
        assert all(
            "nnunet" not in (r["a_source"], r["b_source"])
            for r in found["agreement"]
            if r["structure"] == "Rectum"
        )
        assert list(compared_findings(store, found, structures_of(location, store))) == []


def structures_of(location: Location, store: StoreMetadata) -> list[dict[str, Any]]:
    finalise(location.local())
    return [r for r in rows(location, "structures") if r["patient_id"] == store.patient_id]


@pytest.fixture(scope="session")
def compared(converted: Path) -> tuple[StoreMetadata, dict[str, Any], list[Any]]:
    """A patient's store, its rows of comparisons, and those of structures."""
    location = Location(converted / "dataset")
    store = open_store(location, NEW)
    structures = [r for r in rows(location, "structures") if r["patient_id"] == NEW]
    return store, compare_store(location, store), structures


class TestFindings:
    def test_a_row_too_few_or_too_many(self, compared: Any) -> None:
        store, found, structures = compared
        for name in COMPARED:
            for changed in (found[name][1:], [*found[name], found[name][0]]):
                (finding,) = {
                    f
                    for t, f in compared_findings(store, found | {name: changed}, structures)
                    if "rows" in f
                }
                assert "measure --overwrite" in finding

    def test_volumes_that_structures_does_not_have(self, compared: Any) -> None:
        store, found, structures = compared
        first, *others = found["agreement"]
        wrong = {"agreement": [first | {"a_cc": first["a_cc"] * 1.01}, *others]}
        assert [t for t, _ in compared_findings(store, wrong, structures)] == ["agreement"]
        edits = [r | {"inside_voxels": r["inside_voxels"] + 1} for r in found["uncertainty"]]
        said = list(compared_findings(store, {"uncertainty": edits}, structures))
        assert len(said) == 16  # two structures, two steps, four observers

    def test_a_table_that_was_changed_is_found_and_mended_by_finalise(
        self, dataset: Location
    ) -> None:
        measured_here(dataset, NEW, OTHER)
        finalise(dataset.local())
        sound = rows(dataset, "agreement")
        file = dataset.local("metadata/agreement/extended-00000.parquet")
        table = pq.read_table(file)
        pq.write_table(pa.concat_tables([table.slice(1)]), file)
        assert any("agreement" in p.where for p in validate(dataset).problems)
        finalise(dataset.local())
        assert rows(dataset, "agreement") == sound
        assert validate(dataset).problems == ()
