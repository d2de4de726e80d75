"""Folders of a local disk that appear whole, in the place of others or where nothing was."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lundprobe_zarr.storage.writers import is_alive, writer

#: Between the name of a replaced folder and a random part; hidden until it is removed.
REPLACED = ".replaced-"
#: Between the name of a folder and that of who is writing it; hidden until it is complete.
_PARTIAL = ".partial-"


@contextmanager
def drafted(final: Path) -> Iterator[Path]:
    """Within, the path of a draft of a folder, beside it and this writer's alone.

    What is left of it is removed at the end, as are drafts of the same folder by processes that
    were killed.
    """
    prefix = f".{final.name}{_PARTIAL}"
    for left in final.parent.glob(f"{glob.escape(prefix)}*"):
        if is_alive(left.name.removeprefix(prefix)) is False:
            remove(left)
    draft = final.with_name(f"{prefix}{writer()}")
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
