"""A small source tree and its conversion, fresh for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import (
    LIGHT,
    MRI,
    NEW,
    OLD,
    SCT,
    Workplace,
    convert_tree,
    write_patient,
    write_side_files,
)

from tests.spare import Spare


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


@pytest.fixture(scope="session")
def spare_source(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Spare:
    return Spare(sound / "source", tmp_path_factory.mktemp("spare-source"))


@pytest.fixture(scope="session")
def spare_dataset(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Spare:
    return Spare(sound / "dataset", tmp_path_factory.mktemp("spare-dataset"))


@pytest.fixture
def work(spare_source: Spare, spare_dataset: Spare, tmp_path: Path) -> Iterator[Workplace]:
    """A copy of `sound` to damage; times are kept, so the copy is current."""
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    with spare_source.lent(source), spare_dataset.lent(dataset):
        yield Workplace(source, dataset)


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
