"""Links, twins, vanished and unreadable files, full disks: a bad patient fails alone."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from pathlib import Path

import pytest
from trees import MRI, NEW, OLD, SCT, Workplace, convert_tree, snapshot, write_patient

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import find_root, take_inventory
from lundprobe_zarr.errors import SourceNotFoundError, UsageError
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT
from lundprobe_zarr.vocabulary.names import PATIENT_ID_FORM

MASK = "sCT/mask_BODY.nii.gz"


def expect_failure(work: Workplace, *patterns: str) -> None:
    """The patient fails, with all of `patterns` in the message; the others are as they were."""
    before = snapshot(work.store)
    results = work.convert()
    error = results[NEW].error or ""
    assert results[NEW].status == "failed"
    for pattern in patterns:
        assert re.search(pattern, error), error
    assert results[OLD].status == "converted"
    assert snapshot(work.store) == before


@pytest.mark.parametrize("path", [MASK, MRI, FIDUCIAL_TEXT])
def test_a_dangling_link_fails_its_patient(work: Workplace, path: str) -> None:
    file = work.folder / path
    file.unlink()
    file.symlink_to("gone.nii.gz")
    expect_failure(work, f"^basePart/{NEW}/{path}: a dangling link to gone", "restore it")


def test_a_link_that_loops_fails_its_patient(work: Workplace) -> None:
    file = work.folder / MASK
    file.unlink()
    file.symlink_to(file.name)
    expect_failure(work, f"^basePart/{NEW}/{MASK}: ", "link", "restore it")


@pytest.mark.parametrize("path", [MASK, MRI, FIDUCIAL_TEXT])
def test_a_folder_in_place_of_a_file_fails_its_patient(work: Workplace, path: str) -> None:
    (work.folder / path).unlink()
    (work.folder / path).mkdir()
    expect_failure(work, f"^basePart/{NEW}/{path}: not a file", "expected a readable file")


def test_a_pipe_in_place_of_a_file_fails_its_patient_without_waiting(work: Workplace) -> None:
    (work.folder / MASK).unlink()
    os.mkfifo(work.folder / MASK)
    expect_failure(work, f"^basePart/{NEW}/{MASK}: not a file")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that fails to be read")
@pytest.mark.parametrize("path", [MASK, FIDUCIAL_TEXT])
def test_a_disk_that_fails_to_be_read_fails_the_patient(work: Workplace, path: str) -> None:
    file = work.folder / path
    file.unlink()
    file.symlink_to("/proc/self/mem")  # whose first byte cannot be read: EIO
    before = snapshot(work.store)
    results = work.convert(follow_links=True)
    error = results[NEW].error or ""
    assert error.startswith(f"basePart/{NEW}/{path}: cannot be read (Input/output error)"), error
    assert "check" in error
    assert results[OLD].status == "converted"
    assert snapshot(work.store) == before


@pytest.mark.parametrize("path", [MRI, SCT])
def test_a_patient_without_the_image_of_a_folder_fails(work: Workplace, path: str) -> None:
    (work.folder / path).unlink()
    expect_failure(work, f"^basePart/{NEW}: no {path}", "fetch the patient again")


def test_an_empty_patient_folder_fails(work: Workplace) -> None:
    shutil.rmtree(work.folder)
    work.folder.mkdir()
    expect_failure(work, f"^basePart/{NEW}: no {MRI}", "fetch the patient again")


def test_a_patient_folder_that_is_a_dangling_link_fails(work: Workplace) -> None:
    shutil.rmtree(work.folder)
    work.folder.symlink_to("gone")
    expect_failure(work, f"^basePart/{NEW}", "dangling", "restore it")


def test_an_id_in_both_parts_fails_in_both(work: Workplace) -> None:
    write_patient(work.source, part="extended")
    before = snapshot(work.store)
    inventory = take_inventory(work.source)
    results = [convert_patient(p, work.dataset, "standard") for p in inventory.patients]
    twins = [r for r in results if r.patient_id == NEW]
    assert [r.status for r in twins] == ["failed", "failed"]
    for part, result in zip(("basePart", "extendedPart"), twins, strict=True):
        assert (result.error or "").startswith(f"{part}/{NEW}: its id is in both")
        assert "remove one folder" in (result.error or "")
    assert [r.status for r in results if r.patient_id == OLD] == ["converted"]
    assert snapshot(work.store) == before


def lead_outside(work: Workplace, tmp_path: Path, what: str) -> None:
    """Move a file, a folder or the whole patient out of the tree and leave a link."""
    inside = {"file": work.folder / MASK, "folder": work.folder / "sCT", "patient": work.folder}
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(inside[what], outside / "it")
    inside[what].symlink_to(outside / "it")


@pytest.mark.parametrize("what", ["file", "folder", "patient"])
def test_a_link_that_leads_outside_the_source_fails_its_patient(
    work: Workplace, tmp_path: Path, what: str
) -> None:
    lead_outside(work, tmp_path, what)
    expect_failure(
        work, f"^basePart/{NEW}/.*: links outside the source tree, to {tmp_path}", "--follow-links"
    )


@pytest.mark.parametrize("what", ["file", "folder", "patient"])
def test_a_link_that_leads_outside_is_converted_where_that_is_allowed(
    work: Workplace, tmp_path: Path, what: str
) -> None:
    lead_outside(work, tmp_path, what)
    assert work.convert(follow_links=True)[NEW].status == "converted"


def test_a_link_within_the_source_is_converted(work: Workplace) -> None:
    file = work.folder / MASK
    file.rename(work.source / "shared.nii.gz")
    file.symlink_to(work.source / "shared.nii.gz")
    assert work.convert_one().status == "converted"


def test_a_link_to_an_enclosing_folder_does_not_go_round_for_ever(work: Workplace) -> None:
    (work.folder / "sCT" / "up").symlink_to("..")
    result = work.convert_one()
    assert result.status == "converted"
    assert any("unknown file left out: sCT/up/" in f for f in result.findings)


@pytest.mark.parametrize("path", [MASK, MRI, FIDUCIAL_TEXT])
def test_a_file_that_vanishes_after_the_inventory_fails_its_patient(
    work: Workplace, path: str
) -> None:
    patient = next(p for p in take_inventory(work.source).patients if p.patient_id == NEW)
    before = snapshot(work.store)
    (work.folder / path).unlink()
    result = convert_patient(patient, work.dataset, "standard")
    assert result.status == "failed"
    assert (result.error or "").startswith(f"basePart/{NEW}/{path}: not found")
    assert "restore it" in (result.error or "")
    assert snapshot(work.store) == before


def test_a_disk_that_refuses_to_be_written_fails_the_patient(work: Workplace) -> None:
    patient = next(p for p in take_inventory(work.source).patients if p.patient_id == NEW)
    before = snapshot(work.dataset)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        result = convert_patient(patient, work.dataset, "standard")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.status == "failed"
    assert re.search("larger than it may be|no space", result.error or "")
    assert NEW in (result.error or ""), "the message names whom it is about"
    assert snapshot(work.dataset) == before


def test_a_destination_that_cannot_be_made_fails_the_patient(
    work: Workplace, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    results = convert_tree(work.source, tmp_path / "taken")
    assert {r.status for r in results.values()} == {"failed"}
    assert all("taken" in (r.error or "") for r in results.values())


STRANGE = ("oldAcq_0123", "newAcq_00000000000000A1", "patient", "newAcq_00000000000000a1_copy")


def test_folders_that_are_no_patients_are_skipped_and_named(work: Workplace) -> None:
    for name in STRANGE:
        write_patient(work.source, name, only=(MRI, SCT))
    (work.source / "basePart" / "notes.txt").write_text("hello")
    (work.source / "basePart" / "newAcq_00000000000000ff").write_text("a file, not a folder")
    (work.source / "basePart2").mkdir()
    inventory = take_inventory(work.source)
    assert [p.patient_id for p in inventory.patients] == [NEW, OLD]
    for name in (*STRANGE, "notes.txt"):
        said = f"basePart/{name}: not a patient id; expected {PATIENT_ID_FORM}"
        assert said in inventory.skipped
    assert "basePart/newAcq_00000000000000ff: not a folder" in inventory.skipped
    assert (
        "basePart2: not a folder of a part; expected basePart or extendedPart" in inventory.skipped
    )


@pytest.mark.parametrize("nesting", ["", "lund-probe", "lund-probe/lund-probe"])
def test_the_tree_is_found_as_the_archive_unpacks_it(tmp_path: Path, nesting: str) -> None:
    write_patient(tmp_path / nesting, only=(MRI, SCT))
    assert find_root(tmp_path) == (tmp_path / nesting).resolve()


def test_a_source_without_parts_is_refused_with_a_hint(tmp_path: Path) -> None:
    folder = write_patient(tmp_path, only=(MRI, SCT))
    with pytest.raises(SourceNotFoundError, match="no such folder"):
        take_inventory(tmp_path / "elsewhere")
    with pytest.raises(SourceNotFoundError, match=f"did you mean {tmp_path}"):
        take_inventory(folder.parent)
    with pytest.raises(SourceNotFoundError, match="expected the unpacked LUND-PROBE archive"):
        take_inventory(folder)
    (folder / "lundprobe.json").write_text("{}")  # source and dataset named the other way round
    with pytest.raises(SourceNotFoundError, match="this is a converted dataset: give the source"):
        take_inventory(folder)


def test_two_trees_side_by_side_are_refused(tmp_path: Path) -> None:
    write_patient(tmp_path / "one", only=(MRI, SCT))
    write_patient(tmp_path / "two", only=(MRI, SCT))
    with pytest.raises(UsageError, match=r"several source trees.*one.*two.*give one"):
        take_inventory(tmp_path)
