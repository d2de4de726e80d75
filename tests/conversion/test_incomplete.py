"""A dataset that lacks patients of its source: who reads, finalises or validates it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MRI, NEW, OLD, SCT, Workplace, write_patient

from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.arrays.patient import PatientResult, convert_patient
from lundprobe_zarr.conversion.run.run import convert
from lundprobe_zarr.conversion.source.inventory import select, take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.converter_notes import absent
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location

LATE = "oldAcq_00000000000000c3"


@pytest.fixture
def partial(work: Workplace) -> Workplace:
    """Of three patients one was converted, one failed, and one is of another share."""
    (work.source / "basePart" / OLD / MRI).write_bytes(b"")
    write_patient(work.source, LATE, only=(MRI, SCT))
    some = select(take_inventory(work.source), [NEW, OLD])
    assert convert(some, work.dataset).count("failed") == 1
    return work


def said(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code in (0, None)
    return capfd.readouterr().out


LINE = f"1 of the source's 3 patients are here; 1 ({OLD}) failed; 1 ({LATE}) not converted yet"


def test_commands_say_who_is_missing(
    partial: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = said(capfd, "finalise", partial.dataset)
    assert f"Incomplete: {LINE}." in out
    assert f"lundprobe-zarr convert SOURCE {partial.dataset} converts the missing patients" in out
    assert LINE in said(capfd, "info", partial.dataset)
    report = tmp_path / "v.json"
    assert f"Incomplete: {LINE}." in said(capfd, "validate", partial.dataset, "--report", report)
    written = json.loads(report.read_text())
    assert written["sound"] is True
    assert written["absent"] == {"source_patients": 3, "failed": [OLD], "missing": [LATE]}


def test_once_they_are_converted_nobody_is_missing(partial: Workplace) -> None:
    assert str(finalise(partial.dataset).absent) == LINE
    write_patient(partial.source, OLD, only=(MRI, SCT))
    for patient in take_inventory(partial.source).patients:
        assert convert_patient(patient, partial.dataset, "standard").error is None
    convert(take_inventory(partial.source), partial.dataset)  # they are current, and noted so
    assert finalise(partial.dataset).absent is None
    assert validate(Location(partial.dataset)).absent is None
    assert list((partial.dataset / ".conversion" / "failed").iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "[]", '{"patients": 3}'])
def test_without_the_memory_nothing_is_known(partial: Workplace, text: str | None) -> None:
    note = partial.dataset / ".conversion" / "source.json"
    note.unlink() if text is None else note.write_text(text)
    assert finalise(partial.dataset).absent is None
    shutil.rmtree(partial.dataset / ".conversion")
    assert validate(Location(partial.dataset)).absent is None


class Unlisted(Location):
    """A bucket that may be read and not listed."""

    def children(self, relative: str) -> list[str]:
        raise DatasetError("access denied")


def test_who_may_not_list_is_told_who_is_missing_but_not_why(partial: Workplace) -> None:
    found = absent(Unlisted(partial.dataset), [NEW])
    assert found is not None
    assert (found.failed, found.missing) == ((), (OLD, LATE))


def test_a_run_that_is_killed_has_noted_who_failed_until_then(
    partial: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(partial.dataset / ".conversion" / "failed")

    class Killed(BaseException):
        """Ends a run as a signal does."""

    def results(*arguments: object) -> Iterator[PatientResult]:
        yield PatientResult(OLD, "failed", 0, error="broken")
        raise Killed

    monkeypatch.setattr("lundprobe_zarr.conversion.run.run._results", results)
    with pytest.raises(Killed):
        convert(take_inventory(partial.source), partial.dataset)
    assert str(finalise(partial.dataset).absent) == LINE
