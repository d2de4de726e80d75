"""A copy of a folder that test after test may change: what one has changed is mended for the next.

To copy the phantom's dataset takes half a second, as it has more than a thousand files and folders;
to see which of them a test has changed takes some milliseconds.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What tells a file that was changed, replaced or made unreadable: mode, inode, ctime, size.
Mark = tuple[int, int, int, int]


class Spare:
    """A copy of a folder, lent to one user after another, each of whom gets it as it was.

    `original` may not change.
    """

    def __init__(self, original: Path, home: Path) -> None:
        self._original = str(original)
        self._place = home / "spare"
        self._marks: dict[str, Mark] = {}
        self._mended: set[str] = set()

    @contextmanager
    def lent(self, place: Path) -> Iterator[Path]:
        """The copy at `place`, which is not there before the block nor after it."""
        if self._place.exists():
            self._place.rename(place)
        else:
            shutil.copytree(self._original, place)
            self._marks = dict(_marks(str(place)))
        try:
            yield place
        finally:
            if place.is_dir() and not place.is_symlink():
                self._mend(str(place))
                place.rename(self._place)

    def _mend(self, copy: str) -> None:
        there = dict(_marks(copy))
        for name in there.keys() - self._marks.keys():
            _remove(f"{copy}/{name}")
        for name, mark in self._marks.items():  # a folder comes before what is in it
            if there.get(name) != mark or not self._is_sure(f"{copy}/{name}", name):
                _remove(f"{copy}/{name}")
                _restore(f"{self._original}/{name}", f"{copy}/{name}")
                self._marks[name] = _mark(f"{copy}/{name}")
                self._mended.add(name)

    def _is_sure(self, file: str, name: str) -> bool:
        """Whether a file is as it was: mended a moment ago, it may have changed in the same tick of
        the clock; and what was in a folder that has just been mended is lost."""
        if not os.path.lexists(file):
            return False
        if name not in self._mended or Path(file).is_dir():
            return True
        return Path(file).read_bytes() == Path(self._original, name).read_bytes()


def _marks(folder: str, name: str = "") -> Iterator[tuple[str, Mark]]:
    """Names and marks of all folders and files below a folder, a folder before what is in it."""
    with os.scandir(f"{folder}/{name}") as entries:
        for entry in entries:
            yield name + entry.name, _mark(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _marks(folder, f"{name}{entry.name}/")


def _mark(file: str) -> Mark:
    found = os.lstat(file)
    if stat.S_ISDIR(found.st_mode):  # its times and size tell of what is in it, which has its own
        return found.st_mode, found.st_ino, 0, 0
    return found.st_mode, found.st_ino, found.st_ctime_ns, found.st_size


def _remove(file: str) -> None:
    if not os.path.lexists(file):  # gone with its folder
        return
    if stat.S_ISDIR(os.lstat(file).st_mode):
        Path(file).chmod(0o700)
        shutil.rmtree(file)
    else:
        Path(file).unlink()


def _restore(original: str, file: str) -> None:
    if Path(original).is_dir():
        Path(file).mkdir()
        shutil.copystat(original, file)
    else:
        shutil.copy2(original, file)
