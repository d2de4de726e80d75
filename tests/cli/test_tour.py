"""The pictures of `make tour` show what the commands print today."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import tour  # noqa: E402


@pytest.fixture
def run(cli):
    def both(arguments: list[str]) -> str:
        ran = cli(*arguments)
        return f"{ran.out}{ran.err}"

    return both


def kept() -> str:
    return (tour.IMAGES / "tour-terminal.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", tour.COMMANDS[2:])
def test_the_terminal_shows_what_a_command_prints(command, run, dataset, tmp_path, monkeypatch):
    """If it fails: look at the difference, then run `make tour`."""
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    assert tour.session(run, command) in kept()


@pytest.mark.slow
def test_the_terminal_shows_all_from_the_beginning(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tour.text(run).splitlines() == kept().splitlines()


def test_the_picture_is_of_that_text():
    drawn = (tour.IMAGES / "tour-terminal.svg").read_text(encoding="utf-8")
    shown = "".join(html.unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", drawn))
    assert "".join(kept().split()) in "".join(shown.split())


def test_pictures_are_small_and_fetch_nothing():
    drawn = (tour.IMAGES / "tour-terminal.svg").read_text(encoding="utf-8")
    assert re.findall(r"(?:url\(|href=).?https?://[^\s)]+", drawn) == []
    for picture in tour.IMAGES.glob("*.*"):
        assert picture.stat().st_size <= 150_000, picture.name
