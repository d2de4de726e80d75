"""What hostile cases are spoilt from, and a dataset to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile.material import Material
from lundprobe_zarr.schema.document import CHECKSUM, add_checksum


@pytest.fixture(scope="session")
def material(
    phantom_source: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Material:
    """The phantom and its conversion, and a folder to work in."""
    return Material(phantom_source, dataset, tmp_path_factory.mktemp("hostile"))


Edit = Callable[[Path, Callable[[Any], None]], None]


@pytest.fixture
def edit() -> Edit:
    """Changes a JSON file in place, with a checksum that fits where there is one."""

    def apply(file: Path, change: Callable[[Any], None]) -> None:
        content = json.loads(file.read_text())
        holder = content.get("attributes", content)
        had_checksum = CHECKSUM in holder
        change(content)
        if had_checksum:
            add_checksum(content, content.get("attributes", content))
        file.write_text(json.dumps(content))

    return apply
