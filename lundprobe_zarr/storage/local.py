"""Files of a local disk: each appears whole, or stays what it was."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.storage.decode_pool import scratch
from lundprobe_zarr.storage.writers import writer

#: Between the name of a file and that of who is writing it; hidden until it is complete.
WRITING = ".writing-"


def absolute(path: str) -> Path:
    """A path from the root on, `~` being the user's home as in a shell."""
    # Not Path.expanduser, which raises for `~name` where there is no such user.
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111


@contextmanager
def named(place: Path) -> Iterator[None]:
    """Within, an operating system's error that says of no file, such as of a full disk, says this.

    Only around what writes to `place`: an error of reading is none of it. Raises `OSError`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, LundProbeError) or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


@contextmanager
def appearing(path: Path, mode: int = 0o666) -> Iterator[Any]:
    """Within, an open file, which takes the place of `path` once it is written and synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{WRITING}{writer()}")
    try:
        with open(temporary, "wb", opener=lambda name, how: os.open(name, how, mode)) as file:
            yield file
            _sync(file)
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):  # a name that nobody has heard of
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def staged(path: Path, contents: bytes | Path) -> Iterator[None]:
    """Within, bytes or a copy of a file are on the device; they take the place of `path` after."""
    with appearing(path) as file:
        if isinstance(contents, Path):
            _copy(contents, file)
        else:
            file.write(contents)
        _sync(file)
        yield


def write_local(path: Path, data: bytes) -> None:
    """Write a file."""
    with appearing(path) as file:
        file.write(data)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read or write, who stays who it was.

    Raises `OSError` if the file that it replaces belongs to somebody else, to whom it cannot be
    given: root can give it.
    """
    before = path.stat() if path.exists() else None
    with appearing(path, 0o600) as file:
        if before is not None and before.st_uid != os.geteuid():
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        file.write(data)


def copy_local(source: Path, path: Path) -> None:
    """Copy a file, without holding it in memory."""
    with appearing(path) as file:
        _copy(source, file)


def _copy(source: Path, file: Any) -> None:
    with source.open("rb") as original:
        while block := original.read(1 << 22):
            file.write(block)


def require_folder(place: Path, named: str) -> None:
    """Require that `place` is a folder or can become one.

    Raises `UsageError`, which calls it `named`, if it is a file or lies below one.
    """
    there = next((p for p in (place, *place.absolute().parents) if p.exists()), None)
    if there is None or there.is_dir():
        return
    if there == place:
        raise UsageError(f"{named} is a file", expected="a folder or nothing")
    raise UsageError(f"{there} is a file", where=named, expected="a folder")


def open_local(path: Path) -> int:
    """Descriptor of a file, to be read.

    Raises `OSError`; a folder, pipe, socket or device, which might never end, is no file there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # or a pipe would wait
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise FileNotFoundError(errno.ENOENT, "a pipe, socket or device, not a file", str(path))


def read_whole(path: Path) -> bytes:
    """Contents of a file; raises as `open_local` does."""
    with open(open_local(path), "rb", buffering=0) as file:
        return file.read()


def read_local(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes [start, stop) of a file, for each span, fewer behind its end; as `open_local`."""
    with open(open_local(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size  # memory for what there is, not for what is asked
        stops = (min(stop, size) for _, stop in spans)
        return [
            os.pread(file.fileno(), stop - start, start) if stop > start else b""
            for (start, _), stop in zip(spans, stops, strict=True)
        ]


class LocalFiles:
    """Files read piece by piece into memory that is used again; open within one `with`.

    `path_of` gives the path of a file by name, `explained` the error to raise for one of the
    system's. Threads may share it. A new `bytes` for each piece would be fresh memory for the
    system to provide, and a list of all pieces would leave the processor's cache before the first
    is decoded.
    """

    def __init__(
        self, path_of: Callable[[str], Path], explained: Callable[[OSError, str], OSError]
    ) -> None:
        self._path_of = path_of
        self._explained = explained
        self._lock = threading.Lock()
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> LocalFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return bytes [start, stop) of a file; fewer at its end.

        They are good until this thread reads the next ones. Raise what `explained` returns for a
        file that is not there or cannot be read.
        """
        buffer = scratch().bytes("file", stop - start)
        try:
            count = os.preadv(self._descriptor(name), [buffer.data], start)
        except OSError as error:
            raise self._explained(error, name) from None
        return buffer[:count]

    def _descriptor(self, name: str) -> int:
        found = self._descriptors.get(name)
        if found is None:
            with self._lock:
                found = self._descriptors.get(name)
                if found is None:
                    found = self._descriptors[name] = open_local(self._path_of(name))
        return found
