"""Phantoms that these tests share."""

from __future__ import annotations

import pytest
from phantom_reading import Tree

from lundprobe_zarr.phantom import write_phantom


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    dest = tmp_path_factory.mktemp("phantom") / "tiny"
    return Tree(write_phantom(dest, patients=4, extended=1))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    dest = tmp_path_factory.mktemp("phantom") / "small"
    return Tree(write_phantom(dest, patients=1, extended=1, size="small"))
