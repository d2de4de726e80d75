"""Files of a local disk: ranges of them, and how they appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_parts(path: Path, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes [start, stop) of a file, for each of `parts`; fewer where it ends before."""
    with path.open("rb", buffering=0) as file:
        return [os.pread(file.fileno(), stop - start, start) for start, stop in parts]


def write_file(path: Path, data: bytes) -> None:
    """Let a file of these bytes appear."""
    with _appearing(path) as file:
        file.write(data)


def copy_file(source: Path, path: Path) -> None:
    """Let a file appear that is as `source`, without holding it in memory."""
    with source.open("rb") as original, _appearing(path) as file:
        while block := original.read(1 << 22):
            file.write(block)


@contextmanager
def _appearing(path: Path) -> Iterator[Any]:
    """An open file that takes the place of `path` once it is written and synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
