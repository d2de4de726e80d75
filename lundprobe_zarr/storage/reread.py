"""Read objects again that arrived damaged, and verify objects that were written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from lundprobe_zarr.errors import DatasetError, SchemaVersionError, VerificationError
from lundprobe_zarr.storage.location import Location, md5
from lundprobe_zarr.storage.retry import UNKNOWN

_T = TypeVar("_T")
_WRITE_ANEW = (
    "copy the dataset again, or write it again with `lundprobe-zarr convert` and `finalise`"
)


def read_object(
    location: Location,
    relative: str,
    expected: str,
    size: int = UNKNOWN,
    remedy: str = _WRITE_ANEW,
) -> bytes:
    """Return the contents of an object that should exist; `expected` describes it.

    Raises `DatasetError`, with `remedy`, if it does not exist or cannot be read.
    """
    try:
        return location.read(relative, size)
    except FileNotFoundError as error:
        raise DatasetError(
            "not there", where=location.path(relative), expected=expected, remedy=remedy
        ) from error


def read_verified(
    location: Location, relative: str, fetch: Callable[[], bytes], parse: Callable[[bytes], _T]
) -> _T:
    """Fetch an object and return its parsed bytes.

    If `parse` raises `DatasetError`, a remote object is fetched again, up to twice. If the same
    bytes arrive again, the object itself is damaged. Raises as `fetch` and `parse` do.
    """
    before: bytes | None = None
    data: bytes | None = None

    def attempt() -> _T:
        nonlocal before, data
        before, data = data, None
        data = fetch()
        return parse(data)

    def may_be_spoilt(error: DatasetError) -> bool:
        location.forget(relative)
        return data is not None and data != before and not isinstance(error, SchemaVersionError)

    return location.retry.repeat(attempt, DatasetError, may_be_spoilt)


def write_verified(location: Location, relative: str, data: bytes) -> None:
    """Write an object and verify it, by the server's MD5 or by reading it back.

    It is written once more if other bytes arrived. Raises `VerificationError` if that happens
    again, else as `Location.write` does.
    """
    location.write(relative, data)
    if location.is_local:
        return
    with suppress(DatasetError):  # the object may not even be readable
        if _holds(location, relative, data):
            return
    location.write(relative, data)
    if not _holds(location, relative, data):
        raise VerificationError(
            f"other bytes arrived than the {len(data)} that were sent, twice",
            where=location.path(relative),
            expected="the same",
            remedy="run this again, or ask the operator of the server",
        )


def _holds(location: Location, relative: str, data: bytes) -> bool:
    return location.md5(relative) == md5(data) or location.read(relative, len(data)) == data
