"""A lent copy is as it was, whatever who had it before did with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.spare import Spare


def replace_folder(place: Path) -> None:
    shutil.rmtree(place / "a")
    (place / "a").write_text("a file")


def replace_file(place: Path) -> None:
    (place / "a/one").unlink()
    (place / "a/one/deep").mkdir(parents=True)


def link_folder(place: Path) -> None:
    (place / "a").rename(place / "moved")
    (place / "a").symlink_to(place / "moved")


def same_size(place: Path) -> None:
    before = (place / "a/one").stat()
    (place / "a/one").write_text("eno")
    os.utime(place / "a/one", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: list[Callable[[Path], object]] = [
    same_size,
    replace_folder,
    replace_file,
    link_folder,
    lambda place: (place / "a/one").write_text("longer"),
    lambda place: (place / "a/two").write_text("more"),
    lambda place: (place / "b/c/new").mkdir(),
    lambda place: (place / "a").chmod(0o500),
    lambda place: (place / "a/one").chmod(0),
    lambda place: shutil.rmtree(place / "b"),
    lambda place: (place / "top").replace(place / "a/one"),
    lambda place: [p.unlink() for p in place.rglob("*") if p.is_file()],
]


def state(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mode, p.read_text() if p.is_file() else "")
        for p in folder.rglob("*")
    }


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    for name in ("top", "a/one", "b/c/two"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("one")
    return folder


def test_whatever_is_changed_the_next_finds_it_as_it_was(original: Path, tmp_path: Path) -> None:
    spare, expected = Spare(original, tmp_path), state(original)
    for n, change in enumerate([*CHANGES, *reversed(CHANGES), *CHANGES[:1]]):
        with spare.lent(tmp_path / f"{n}") as place:
            assert state(place) == expected, f"after change {n - 1}"
            change(place)
        assert not place.exists()
    assert state(original) == expected


def test_one_that_is_gone_is_made_anew(original: Path, tmp_path: Path) -> None:
    spare = Spare(original, tmp_path)
    with spare.lent(tmp_path / "x") as place:
        shutil.rmtree(place)
    with spare.lent(tmp_path / "y") as place:
        assert state(place) == state(original)
