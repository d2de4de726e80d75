"""Errors of opening and reading source files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lundprobe_zarr.errors import SourceError, SourceNotFoundError


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Turn errors of opening and reading a file into `SourceError`s with `where`."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            "not found, or a dangling link",
            where=where,
            expected="a readable file",
            remedy="restore it",
        ) from error
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"cannot be read ({error.strerror or error})",
            where=where,
            expected="a readable file",
            remedy="check its permissions and the disk",
        ) from error
