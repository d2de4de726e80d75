"""Modules import no circle, within a room too: import-linter looks only at rooms."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import architecture_figures


def test_modules_import_no_circle():
    graph = architecture_figures.imports()
    assert len(graph) > 300
    assert architecture_figures.circles(graph) == []


def test_the_page_names_every_room():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {name.partition(".")[0] for name in architecture_figures.rooms()} - {"(top)"}
    assert [room for room in sorted(rooms) if f"| `{room}` |" not in page] == []
