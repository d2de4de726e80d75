"""Atomic replacement of folders on a local disk."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

#: Between the name of a replaced folder and a random part; hidden until it is removed.
REPLACED = ".replaced-"


def replace_folder(folder: Path, final: Path) -> None:
    """Move a complete folder to its final name, then remove what was there before.

    Another process may do the same at the same time; the last one stays. Both folders have to be
    on one disk. Raises `OSError`.
    """
    _sync_tree(folder)
    moved = _moved_away(final)
    while not _appears(folder, final):
        moved += _moved_away(final)
    _sync(final.parent)
    for old in moved:
        remove(old)


def _moved_away(final: Path) -> list[Path]:
    """Move an existing folder away; return its new path, if there was one."""
    old = final.with_name(f".{final.name}{REPLACED}{uuid.uuid4().hex[:8]}")
    try:
        final.rename(old)
    except FileNotFoundError:
        return []
    return [old]


def _appears(folder: Path, final: Path) -> bool:
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _sync_tree(folder: Path) -> None:
    """Flush a folder to the device, files before their folders."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(left: Path) -> None:
    """Remove a folder, or anything else of that name, without opening it: a pipe would block."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)
