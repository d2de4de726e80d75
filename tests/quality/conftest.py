"""Tables of the converted phantom that a test may change, and of many simulated patients."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from altered_tables import Copy
from cohorts import simulated

from tests.altered import forget_hashes

__all__ = ["simulated"]


@pytest.fixture
def tables(dataset: Path, tmp_path: Path) -> Copy:
    folder = tmp_path / "copy"
    shutil.copytree(dataset / "metadata", folder / "metadata")
    shutil.copy(dataset / "lundprobe.json", folder)
    forget_hashes(folder)
    return Copy(folder)
