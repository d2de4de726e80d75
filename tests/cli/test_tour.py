"""The pictures of `make tour` show what the commands print today."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import tour  # noqa: E402


def test_the_terminal_shows_what_the_commands_print(cli, tmp_path, monkeypatch):
    """If it fails: look at the difference, then run `make tour`."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> str:
        ran = cli(*arguments)
        return f"{ran.out}{ran.err}"

    kept = (tour.IMAGES / "tour-terminal.txt").read_text(encoding="utf-8")
    assert tour.text(run).splitlines() == kept.splitlines()


def test_the_picture_is_of_that_text():
    kept = (tour.IMAGES / "tour-terminal.txt").read_text(encoding="utf-8")
    drawn = (tour.IMAGES / "tour-terminal.svg").read_text(encoding="utf-8")
    shown = "".join(html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    assert "".join(kept.split()) in "".join(shown.split())


def test_pictures_are_small_and_fetch_nothing():
    drawn = (tour.IMAGES / "tour-terminal.svg").read_text(encoding="utf-8")
    assert re.findall(r"(?:url\(|href=).?https?://[^\s)]+", drawn) == []
    for picture in tour.IMAGES.glob("*.*"):
        assert picture.stat().st_size <= 150_000, picture.name
