"""What stays in a dataset beside what is converted: named, and refused where it does not fit."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from trees import LIGHT, MRI, NEW, OLD, SCT, Workplace, snapshot, write_patient

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.run.compatibility import absent_from_source, require_compatible
from lundprobe_zarr.conversion.run.run import Options, Report, _publish, convert
from lundprobe_zarr.conversion.source.inventory import (
    examine,
    select,
    take_inventory,
    without_header_text,
)
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location
from tests.altered import forget_hashes, rewrite

LATE = "newAcq_00000000000000c3"


@pytest.fixture
def left(work: Workplace) -> Workplace:
    """A dataset of two patients, one of whom has left the source."""
    for patient in take_inventory(work.source).patients:
        assert convert_patient(patient, work.dataset, "standard").error is None
    shutil.rmtree(work.source / "basePart" / OLD)
    return work


def refused(work: Workplace, *chosen: str, share: tuple[int, int] | None = None) -> str:
    """Why a conversion to another precision is refused, with nothing written."""
    before = snapshot(work.dataset)
    inventory = select(take_inventory(work.source), chosen, share)
    with pytest.raises(UsageError) as raised:
        convert(inventory, work.dataset, Options(precision="compact", overwrite=True))
    assert snapshot(work.dataset) == before
    return str(raised.value)


def test_another_precision_is_refused_where_a_patient_would_keep_the_old_one(
    left: Workplace,
) -> None:
    said = refused(left)
    assert f"{OLD} (standard): not in the source" in said
    assert NEW not in said
    assert "convert to a new folder" in said
    assert f"remove their stores, such as {left.dataset}/patients/{OLD}.zarr" in said
    shutil.rmtree(left.dataset / "patients" / f"{OLD}.zarr")
    require_compatible(take_inventory(left.source), Location(left.dataset), "compact", True)


def test_patients_not_asked_for_or_not_convertible_would_keep_their_precision(
    left: Workplace,
) -> None:
    write_patient(left.source, OLD, only=(MRI, SCT))
    assert f"{OLD} (standard): not among the selected patients" in refused(left, NEW)
    (left.source / "basePart" / OLD / MRI).unlink()
    assert f"{OLD} (standard): cannot be converted: basePart/{OLD}: no {MRI}" in refused(left)


def test_shares_convert_each_others_patients(left: Workplace) -> None:
    write_patient(left.source, OLD, only=(MRI, SCT))
    share = select(take_inventory(left.source), part=(1, 2))
    require_compatible(share, Location(left.dataset), "compact", True)
    assert [p.patient_id for p in share.whole] == [NEW, OLD]
    shutil.rmtree(left.source / "basePart" / OLD)
    assert "not in the source" in refused(left, share=(1, 1))


def test_a_phantom_does_not_go_into_a_dataset_of_patients(
    left: Workplace, phantom_source: Path
) -> None:
    before = snapshot(left.dataset)
    with pytest.raises(UsageError, match=r"stores of patients, 2 in all.*is of a phantom") as said:
        convert(take_inventory(phantom_source), left.dataset)
    assert f"\n  {NEW}\n  {OLD}" in str(said.value)
    assert snapshot(left.dataset) == before


def test_patients_who_left_the_source_are_reported_and_stay(
    left: Workplace, tmp_path: Path
) -> None:
    inventory = take_inventory(left.source)
    store = snapshot(left.dataset / "patients")
    report = convert(inventory, left.dataset)
    assert report.not_in_source == (OLD,)
    assert snapshot(left.dataset / "patients") == store
    report.write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["not_in_source"] == [OLD]
    for narrowed in (select(inventory, [NEW]), select(inventory, part=(1, 2))):
        assert absent_from_source(narrowed, Location(left.dataset)) == (OLD,)
    write_patient(left.source, LATE, only=LIGHT)
    some = select(take_inventory(left.source), [NEW])
    assert convert(some, left.dataset).not_in_source == ()


def test_headers_of_two_kinds_are_refused_and_found(left: Workplace) -> None:
    finalise(left.dataset)
    (patient,) = without_header_text(take_inventory(left.source)).patients
    assert convert_patient(patient, left.dataset, "standard").error is None
    said = r"standard (with --strip-headers )?\(1\) and standard (with --strip-headers )?\(1\)"
    with pytest.raises(DatasetError, match=said) as raised:
        finalise(left.dataset)
    assert f"--patients {NEW} --overwrite" in str(raised.value) or (
        f"--patients {OLD} --overwrite --strip-headers" in str(raised.value)
    )
    found = [p for p in validate(Location(left.dataset)).problems if "headers_stripped" in str(p)]
    assert "headers_stripped is True; the manifest says False" in str(found)


def test_a_patient_is_not_replaced_by_one_with_other_headers(left: Workplace) -> None:
    before = snapshot(left.dataset)
    inventory = without_header_text(take_inventory(left.source))
    with pytest.raises(UsageError, match="1 of its patients were converted without --strip-h"):
        convert(inventory, left.dataset, Options(overwrite=True))
    assert snapshot(left.dataset) == before
    shutil.rmtree(left.dataset / "patients" / f"{OLD}.zarr")
    convert(inventory, left.dataset, Options(overwrite=True))
    finalise(left.dataset)
    with pytest.raises(UsageError, match="headers"):
        convert(select(take_inventory(left.source), [NEW]), left.dataset)


def test_a_manifest_that_says_another_precision_is_found(left: Workplace) -> None:
    finalise(left.dataset)
    forget_hashes(left.dataset)
    rewrite(left.dataset / "lundprobe.json", lambda said: said.update(precision="lossless"))
    said = "\n".join(map(str, validate(Location(left.dataset)).problems))
    assert said.count("precision is standard; the manifest says lossless; run finalise") == 2


def test_mixed_precisions_name_those_to_convert_and_spare_the_report_of_failures(
    left: Workplace,
) -> None:
    (patient,) = take_inventory(left.source).patients
    assert convert_patient(patient, left.dataset, "compact").error is None
    with pytest.raises(DatasetError, match=r"compact \(1\) and standard \(1\)") as raised:
        finalise(left.dataset)
    command = f"convert SOURCE {left.dataset} --patients {OLD} --overwrite --precision compact"
    assert command in str(raised.value)
    (left.folder / MRI).write_bytes(b"")
    failed = convert_patient(take_inventory(left.source).patients[0], left.dataset, "compact")
    report = Report("source", "dataset", "compact", [failed])
    _publish(Location(left.dataset), report)
    assert "compact (1) and standard (1)" in str(report.unpublished)


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        (MRI, b"", "empty"),
        (MRI, b"<html>", "not gzip: starts with b'<h'"),
        ("MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt", b"", "no line with a position"),
    ],
)
def test_the_first_bytes_show_who_would_fail(
    work: Workplace, path: str, data: bytes, said: str
) -> None:
    (work.folder / path).write_bytes(data)
    (problem, fine) = [p.problem for p in examine(take_inventory(work.source)).patients]
    assert problem is not None
    assert problem.startswith(f"basePart/{NEW}/{path}: {said}")
    assert fine is None


def test_the_first_bytes_show_a_header_that_is_none(work: Workplace) -> None:
    sound = {path: (work.folder / path).read_bytes() for path in (MRI, SCT)}
    (work.folder / MRI).write_bytes(gzip.compress(b"no NIfTI" * 100))
    (work.folder / SCT).write_bytes(b"\x1f\x8b and no more")
    problem = examine(take_inventory(work.source)).patients[0].problem
    assert "not a NIfTI header" in str(problem)
    assert "(and 1 more of its files)" in str(problem)
    (work.folder / SCT).write_bytes(sound[SCT])
    (work.folder / MRI).write_bytes(sound[MRI][: len(sound[MRI]) - 20])
    assert examine(take_inventory(work.source)).patients[0].problem is None, "no voxels are read"
