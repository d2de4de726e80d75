"""Patients written as DICOM, once a session: read-only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_moved import moved_dataset
from dicom_written import Written, write
from scipy.spatial.transform import Rotation


@pytest.fixture(scope="session")
def extended(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The extended patient of the phantom."""
    return write(dataset, tmp_path_factory.mktemp("dicom"), extended=True)


@pytest.fixture(scope="session")
def askew_dataset(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base patient: grids turned each in its own way, planes of two from head to feet."""
    down = np.diag([1.0, 1.0, -1.0])  # makes a lattice left-handed
    turns = {
        "mri": Rotation.from_euler("xyz", (0.2, -0.1, 0.05)).as_matrix() @ down,
        "sct": Rotation.from_euler("xyz", (-0.1, 0.2, 0.3)).as_matrix(),
        "dose": Rotation.from_euler("xyz", (0.05, 0.15, -0.2)).as_matrix() @ down,
    }
    return moved_dataset(phantom_source, tmp_path_factory.mktemp("askew"), turns)


@pytest.fixture(scope="session")
def askew(askew_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The patient of `askew_dataset`."""
    return write(askew_dataset, tmp_path_factory.mktemp("askew-dicom"), extended=False)


@pytest.fixture(params=["extended", "askew"])
def written(request: pytest.FixtureRequest) -> Written:
    """An aligned and an oblique, left-handed patient."""
    found: Written = request.getfixturevalue(request.param)
    return found
