"""Where a dataset lives: a local path or any URL that fsspec knows, and reading its objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lundprobe_zarr.errors import DatasetError, UsageError


class Location:
    """A dataset's root and the objects below it, by `/`-separated relative path.

    `url` is a path or URL; `storage_options` go to fsspec and are neither stored nor printed.
    """

    def __init__(
        self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.url = os.fspath(url)
        self._options = dict(storage_options or {})
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **self._options)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"{self.url}: {error}; expected a path, or a URL whose protocol is installed, e.g. "
                "`pip install lundprobe-zarr[s3]`"
            ) from error

    def __repr__(self) -> str:
        return f"Location({self.url!r})"

    @property
    def is_local(self) -> bool:
        """Whether the dataset is on a local disk."""
        return isinstance(self._fs, LocalFileSystem)

    def path(self, relative: str) -> str:
        """Full name of an object, for messages and other libraries."""
        return f"{self.url.rstrip('/')}/{relative}"

    def _full(self, relative: str) -> str:
        return f"{self._root.rstrip('/')}/{relative}" if relative else self._root

    def read(self, relative: str) -> bytes:
        """Contents of one object; raises `FileNotFoundError` if there is none."""
        return bytes(self._fs.cat_file(self._full(relative)))

    def find(self, relative: str) -> dict[str, int]:
        """Size of every object below a folder, by path relative to that folder."""
        base = self._full(relative).rstrip("/") + "/"
        found = self._fs.find(base, detail=True)
        return {name[len(base) :]: int(info["size"]) for name, info in found.items()}

    def zarr_store(self, relative: str) -> Any:
        """What zarr and xarray open: a path on a local disk, else a read-only fsspec store."""
        if self.is_local:
            return str(Path(self._full(relative)))
        from zarr.storage import FsspecStore

        url = self.path(relative)
        return FsspecStore.from_url(url, storage_options=dict(self._options), read_only=True)


def read_object(location: Location, relative: str, expected: str) -> bytes:
    """Contents of an object that should be there; `expected` says what it is.

    Raises `DatasetError` if it is not there or cannot be read.
    """
    try:
        return location.read(relative)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{location.path(relative)}: not there; expected {expected}; copy the dataset again, "
            "or write it anew with `lundprobe-zarr convert` and `finalise`"
        ) from error
    except OSError as error:
        raise DatasetError(f"{location.path(relative)}: cannot be read ({error})") from error
