"""A small source tree and its conversion, fresh for each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from trees import (
    LIGHT,
    MRI,
    NEW,
    OLD,
    PART_FOLDER,
    SCT,
    convert_tree,
    write_patient,
    write_side_files,
)

from lundprobe_zarr.conversion.arrays.patient import PatientResult, convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.schema.precision import Precision


@dataclass(frozen=True)
class Workplace:
    """A source tree, the dataset it was converted into, and the patient a test is about."""

    source: Path
    dataset: Path
    patient_id: str = NEW
    part: str = "base"

    @property
    def folder(self) -> Path:
        return self.source / PART_FOLDER[self.part] / self.patient_id

    @property
    def store(self) -> Path:
        return self.dataset / "patients" / f"{self.patient_id}.zarr"

    def convert(
        self, precision: Precision = "standard", follow_links: bool = False
    ) -> dict[str, PatientResult]:
        return convert_tree(self.source, self.dataset, precision, follow_links)

    def convert_one(self, precision: Precision = "standard") -> PatientResult:
        """Convert the patient the test is about, alone."""
        patients = take_inventory(self.source).patients
        (patient,) = [p for p in patients if p.patient_id == self.patient_id]
        return convert_patient(patient, self.dataset, precision)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base patient of a few files, converted, and beside it one of two files, not converted."""
    home = tmp_path_factory.mktemp("sound")
    source = home / "source"
    write_patient(source, only=LIGHT)
    write_side_files(source, patients=(NEW, OLD))
    done = convert_tree(source, home / "dataset")
    assert [r.status for r in done.values()] == ["converted"]
    write_patient(source, OLD, only=(MRI, SCT))
    return home


@pytest.fixture
def work(sound: Path, tmp_path: Path) -> Workplace:
    """A copy of `sound` to damage; times are kept, so the copy is current."""
    shutil.copytree(sound / "source", tmp_path / "source")
    shutil.copytree(sound / "dataset", tmp_path / "dataset")
    return Workplace(tmp_path / "source", tmp_path / "dataset")


@pytest.fixture(scope="session")
def sound_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of a whole base patient."""
    source = tmp_path_factory.mktemp("whole") / "source"
    write_patient(source)
    write_side_files(source)
    return source


@pytest.fixture
def whole(sound_whole: Path, tmp_path: Path) -> Workplace:
    """A copy of `sound_whole`, not yet converted."""
    shutil.copytree(sound_whole, tmp_path / "source")
    return Workplace(tmp_path / "source", tmp_path / "dataset")


@pytest.fixture(scope="session")
def sound_extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of a whole extended patient."""
    source = tmp_path_factory.mktemp("extended") / "source"
    write_patient(source, part="extended")
    write_side_files(source, "extended")
    return source


@pytest.fixture
def extended(sound_extended: Path, tmp_path: Path) -> Workplace:
    """A copy of `sound_extended`, not yet converted."""
    shutil.copytree(sound_extended, tmp_path / "source")
    return Workplace(tmp_path / "source", tmp_path / "dataset", part="extended")
