"""Locations of datasets: a local path or any URL that fsspec supports, and the objects there."""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.storage.clients import open_files, read_by_client
from lundprobe_zarr.storage.failures import (
    explain,
    failures,
    is_missing,
    is_past_end,
    is_spoilt,
    is_transient,
    public_options,
    redacted,
    secrets_in,
)
from lundprobe_zarr.storage.forks import keep
from lundprobe_zarr.storage.local import (
    absolute,
    copy_local,
    read_local,
    read_whole,
    staged,
    write_local,
)
from lundprobe_zarr.storage.retry import ONCE, TIMEOUT, UNKNOWN, RetryPolicy
from lundprobe_zarr.storage.urls import (
    BY_HTTP,
    EXTRAS,
    WEB,
    anonymous_options,
    is_chain,
    protocol_of_url,
    separate,
)
from lundprobe_zarr.vocabulary.text import escaped
from lundprobe_zarr.vocabulary.version import with_extra

_LOG = logging.getLogger("lundprobe_zarr.storage")

#: Requests at a time where the file system itself makes one after another.
_THREADS = 16
#: Servers for which a warning was logged: one is enough.
_SLOW_SERVERS: set[str] = set()
#: Characters that no name of ours has: servers and other systems read them as folders, escapes
#: or queries.
_FOREIGN = frozenset("\\%?#")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Range:
    """Bytes [start, stop) of the object `name`, relative to the dataset."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Entry:
    """An object in a listing: its size, and its MD5 where the server computes one.

    `stamp` changes when the object is replaced: the time of its last change, or its ETag.
    """

    size: int
    md5: bytes | None
    stamp: str = ""


class _Opened(NamedTuple):
    """A file system and the dataset's place in it, as opened by a process.

    `ranges` reads ranges of objects in place of the file system, unless it is None.
    """

    process: int
    fs: Any
    root: str
    ranges: Any


class Location:
    """A dataset's root and the objects below it, by `/`-separated relative path.

    `url` is a path or URL without credentials, for messages. Credentials and `storage_options`
    are passed to fsspec only, except `timeout`: the seconds that a server may send nothing.
    A location pickles with its options, so that workers can read. A forked or spawned process
    opens its own file system.
    """

    def __init__(
        self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
    ) -> None:
        options = dict(storage_options or {})
        self._requests = RetryPolicy.of(options.pop(TIMEOUT, None))
        self._target, self._options = separate(os.fspath(url), options)
        self.url = redacted(self._target, whole=True)
        self._opened: _Opened | None = None
        _ = self._fs  # reports a missing protocol now, not at the first read

    def __repr__(self) -> str:
        return f"Location({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # Another process may work in another folder.
        target = self._full("") if self.is_local else self._pinned
        return self.__dict__ | {"_opened": None, "_target": target}

    def _open(self) -> _Opened:
        if "://" not in self._target:  # a path, whatever else fsspec would take it for
            return _Opened(os.getpid(), LocalFileSystem(), str(absolute(self._target)), None)
        try:
            fs, root = open_files(self._target, self._limited)
            return _Opened(os.getpid(), fs, root, self._range_reader(fs))
        except (ValueError, ImportError) as error:
            finding = redacted(str(error), self._secrets)
        except OSError as error:  # ftp and the like connect at once
            raise DatasetError(
                str(redacted(error.strerror or str(error), self._secrets)),
                where=self.url,
                expected="a server that answers",
                remedy="check the address and the network",
            ) from None
        raise UsageError(
            str(finding),
            where=self.url,
            expected=(
                f"a path, or a URL whose protocol is installed, e.g. {with_extra(self._extra)}"
            ),
        )

    def _range_reader(self, fs: Any) -> Any:
        """Return what reads ranges in place of a file system; None if nothing does."""
        if is_chain(self._target) or protocol_of_url(self._target) not in EXTRAS:
            return None
        from lundprobe_zarr.storage.ranges import range_reader

        # Kept with the file system: it holds URLs that this one signed.
        kept = vars(fs)
        if "_lundprobe_ranges" not in kept:
            reader = range_reader(fs, self._options, self._requests.silence)
            kept["_lundprobe_ranges"] = reader
        return kept["_lundprobe_ranges"]

    @property
    def _current(self) -> _Opened:
        # Connections and event loops do not survive a fork.
        if self._opened is None or self._opened.process != os.getpid():
            if self._opened is not None:
                self._target = self._pinned
                keep(self._opened.fs)
            self._opened = self._open()
        return self._opened

    @property
    def _fs(self) -> Any:
        return self._current.fs

    @property
    def _pinned(self) -> str:
        """Return the target with the revision that is read, where there are revisions.

        Other processes, and this one after a fork, read the same revision.
        """
        pinned = None if self._opened is None else getattr(self._opened.fs, "pinned", None)
        return self._target if pinned is None else str(pinned(self._target))

    @property
    def _limited(self) -> dict[str, Any]:
        return self._requests.limits(protocol_of_url(self._target), self._options)

    @property
    def _extra(self) -> str:
        return EXTRAS.get(protocol_of_url(self._target), "s3")

    @property
    def _secrets(self) -> frozenset[str]:
        return secrets_in(self._options)

    @property
    def public_options(self) -> dict[str, Any]:
        """Options that say where the dataset is, such as an endpoint; no secrets."""
        return public_options(self._options)

    @property
    def arguments(self) -> tuple[str, dict[str, Any]]:
        """URL and storage options that open the same place again. May hold credentials."""
        target = self._full("") if self.is_local else self._pinned
        return target, {**self._options, TIMEOUT: self._requests.silence}

    def anonymous(self) -> Location | None:
        """Return the same place without credentials; None if that is not known for the protocol.

        Disks and memory need no credentials.
        """
        options = anonymous_options(protocol_of_url(self._target), self._options)
        if options is None:
            return None
        return Location(self._target, {**options, TIMEOUT: self._requests.silence})

    def _repeats(self, error: BaseException) -> bool:
        """Return whether to repeat a request; clients of buckets repeat only some."""
        if protocol_of_url(self._target) in BY_HTTP:
            return is_transient(error)
        return isinstance(error, TimeoutError) or is_spoilt(error)

    @property
    def retry(self) -> RetryPolicy:
        """Retry policy for bytes that arrive damaged; a local disk gives the same bytes again."""
        return ONCE if self.is_local else self._requests

    @property
    def is_local(self) -> bool:
        """Whether the dataset is on a local disk."""
        return isinstance(self._fs, LocalFileSystem)

    @property
    def in_memory(self) -> bool:
        """Whether the dataset is in the memory of this process, which no other process sees."""
        return protocol_of_url(self._target) == "memory"

    @property
    def can_list(self) -> bool:
        """Whether `listing` works; web servers have no reliable one."""
        return protocol_of_url(self._target) not in WEB

    def path(self, relative: str) -> str:
        """Return the full name of an object, for messages and other libraries."""
        return f"{self.url.rstrip('/')}/{relative}"

    def local(self, relative: str = "") -> Path:
        """Return the path of an object on a local disk; raise `UsageError` for any other place."""
        if not self.is_local:
            raise UsageError("not on a local disk", where=self.path(relative), expected="a path")
        return Path(self._full(relative))

    def _full(self, relative: str) -> str:
        if _leads_out(relative):
            raise DatasetError(
                "a name that leads out of the dataset",
                where=escaped(self.path(relative), keep=""),
                expected=f"one below {self.url}",
                remedy="do not use what names it: a manifest, a table or a store",
            )
        root = self._current.root
        return f"{root.rstrip('/')}/{relative}" if relative else root

    def _do(self, relative: str, action: Callable[[], _T]) -> _T:
        """Return the result of `action`; convert its errors to our own.

        Our error is raised outside the handler, so that the library's error is not its context:
        that may hold secrets, and dask's workers pickle errors with their context.
        """
        ours: Exception
        try:
            return action()
        except failures() as error:
            ours = self.explained(error, relative)
        except TypeError as error:  # some file systems look at their options only now
            if "unexpected keyword argument" not in str(error):
                raise
            ours = UsageError(
                str(error),
                where=self.url,
                expected=(
                    f"storage options that {protocol_of_url(self._target)} takes, "
                    "as the documentation of its file system says"
                ),
            )
        raise ours

    def explained(self, error: BaseException, relative: str) -> OSError:
        """Return our own error for what a library raised about an object."""
        if is_missing(error):
            return FileNotFoundError(errno.ENOENT, "not there", self.path(relative))
        return explain(error, self.path(relative), self._secrets, self.is_local)

    def _ask(self, what: str, *args: Any, size: int = 0, often: bool = False, **more: Any) -> Any:
        """Call a method of the file system, within the time allowed for `size` bytes.

        `often` repeats a request after a transient failure.
        """

        def attempt(seconds: float) -> Any:
            _LOG.debug("%s of %s", what, redacted(str(args[0]), self._secrets, whole=True))
            # What fsspec runs in its own thread takes a time limit.
            limit = {"timeout": seconds} if what in vars(self._fs) else {}
            return getattr(self._fs, what)(*args, **more, **limit)

        if not often:
            return attempt(self._requests.allowed(size))
        return self._requests.request(attempt, size, self._repeats)

    def read(self, relative: str, size: int = UNKNOWN) -> bytes:
        """Return the contents of one object; one request.

        `size` is its largest size, which sets the time limit.

        Raises `FileNotFoundError` if there is none, `DatasetError` if it cannot be read.
        """

        def fetch() -> bytes:
            full = self._full(relative)
            if self.is_local:
                return read_whole(Path(full))
            return bytes(self._ask("cat_file", full, size=size, often=True))

        return self._do(relative, fetch)

    def forget(self, relative: str) -> None:
        """Drop the cached copy of an object, which may be damaged; the next read fetches it."""

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of every range, requested at the same time; one request per range.

        A range that reaches beyond the object gives fewer bytes, or none. Raises
        `FileNotFoundError` or `DatasetError` for the first range that cannot be read.
        """
        if self.is_local:
            return self._read_local(ranges)
        results: list[Any] = [None] * len(ranges)
        again = list(range(len(ranges)))
        for seconds in self._requests.attempts(sum(r.stop - r.start for r in ranges)):
            repeated = self._attempt_ranges([ranges[i] for i in again], seconds)
            for i, result in zip(again, repeated, strict=True):
                results[i] = result
            again = [i for i in again if self._may_pass(results[i])]
            if not again:
                break
        return [self._settled(r, result) for r, result in zip(ranges, results, strict=True)]

    def _may_pass(self, result: Any) -> bool:
        return isinstance(result, failures()) and self._repeats(result)

    def _attempt_ranges(self, ranges: Sequence[Range], seconds: float) -> list[Any]:
        if _LOG.isEnabledFor(logging.DEBUG):
            for wanted in ranges:
                _LOG.debug("read %s, bytes %d to %d", wanted.name, wanted.start, wanted.stop)
        names = [self._full(r.name) for r in ranges]
        starts, stops = [r.start for r in ranges], [r.stop for r in ranges]
        reader = self._current.ranges
        if reader is None:
            found = read_by_client(self._fs, names, starts, stops, seconds)
        else:
            found = reader.cat_ranges(names, starts, stops, seconds)
        for server in getattr(reader or self._fs, "ignoring", ()):
            self._warn_of(server)
        return found

    def _warn_of(self, server: str) -> None:
        """Log once that a server sends whole objects; the values read are still right."""
        if server in _SLOW_SERVERS:
            return
        _SLOW_SERVERS.add(server)
        text = (
            f"{server}: ignores byte ranges and sends whole objects, so every patch downloads "
            "whole files; the values are right, but reading is slow, and other readers may "
            "return wrong values; expected a server with ranges, such as nginx or a bucket, "
            f"or a copy: lundprobe-zarr copy {shlex.quote(self.url)} FOLDER"
        )
        warnings.warn(text, UserWarning, stacklevel=2)

    def _settled(self, wanted: Range, result: Any) -> bytes:
        if isinstance(result, BaseException):
            if is_past_end(result):
                return b""
            raise self.explained(result, wanted.name)
        data = bytes(result)
        if len(data) > wanted.stop - wanted.start:  # the server ignores ranges: the whole object
            return data[wanted.start : wanted.stop]
        return data

    def _read_local(self, ranges: Sequence[Range]) -> list[bytes]:
        out = [b""] * len(ranges)
        by_name: dict[str, list[int]] = {}
        for i, wanted in enumerate(ranges):
            by_name.setdefault(wanted.name, []).append(i)
        for name, members in by_name.items():
            path = Path(self._full(name))
            spans = [(ranges[i].start, ranges[i].stop) for i in members]
            found = self._do(name, partial(read_local, path, spans))
            for i, data in zip(members, found, strict=True):
                out[i] = data
        return out

    def find(self, relative: str) -> dict[str, int]:
        """Return the size of every object below a folder, by path relative to that folder.

        Raises `DatasetError` where objects cannot be listed: see `can_list` and `sizes`.
        """
        return {name: entry.size for name, entry in self.listing(relative).items()}

    def listing(self, relative: str) -> dict[str, Entry]:
        """Return every object below a folder, by path relative to it; raise as `find` does."""
        if not self.can_list:
            raise DatasetError(
                "a web server gives no listing",
                where=self.path(relative),
                expected="a path or a bucket",
                remedy="ask for objects by name",
            )
        base = self._full(relative).rstrip("/") + "/"
        try:
            self._fs.invalidate_cache()
            found = self._do(relative, lambda: self._ask("find", base, detail=True))
        except FileNotFoundError:  # some file systems say so of a folder without objects
            return {}
        return {name[len(base) :]: _entry(info) for name, info in found.items()}

    def children(self, relative: str) -> list[str]:
        """Return the names of files and folders directly below a folder, in order; few requests.

        Empty for a folder that does not exist. Raises `DatasetError` if it cannot be listed.
        """
        base = self._full(relative).rstrip("/")
        try:
            self._fs.invalidate_cache()
            found = self._do(relative, lambda: self._ask("ls", base, detail=False))
        except FileNotFoundError:
            return []
        paths = (str(name).rstrip("/") for name in found)
        return sorted({name.rpartition("/")[2] for name in paths if name != base})

    def is_folder(self, relative: str) -> bool:
        """Return whether there is a folder of this name, or a bucket. One request.

        A folder of a bucket is there only if it holds objects. Raises `DatasetError` if it cannot
        be looked up.
        """
        try:
            return str(self._info(relative).get("type")) == "directory"
        except FileNotFoundError:
            return False

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Return the sizes of the objects `names` that exist; one request per object."""
        wanted = list(names)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(self.size, wanted)
            return {n: s for n, s in zip(wanted, found, strict=True) if s is not None}

    def read_each(self, names: Iterable[str]) -> list[bytes | None]:
        """Return the contents of each of the objects `names`, None for one that does not exist.

        Reads many small objects at once. Raises `DatasetError` if one cannot be read.
        """

        def contents(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(contents, names))

    def size(self, relative: str) -> int | None:
        """Return the size of an object in bytes; None if there is none.

        Raises `DatasetError` if the server does not state it.
        """
        try:
            size = self._info(relative)["size"]
        except FileNotFoundError:
            return None
        if size is None:  # a web server that compresses or generates what it sends
            raise DatasetError(
                "the server does not state how many bytes it has",
                where=self.path(relative),
                expected=(
                    "a server that sends files unchanged, with a Content-Length and "
                    "no Content-Encoding"
                ),
                remedy="turn off its compression for this folder",
            )
        return int(size)

    def _info(self, relative: str) -> Mapping[str, Any]:
        def ask() -> Mapping[str, Any]:
            self._fs.invalidate_cache()  # another process may have changed the listed objects
            info: Mapping[str, Any] = self._ask("info", self._full(relative), often=True)
            return info

        return self._do(relative, ask)

    def md5(self, relative: str) -> bytes | None:
        """Return the MD5 that the server computed of an object; None without one. One request.

        Raises `FileNotFoundError` if there is no such object.
        """
        return None if self.is_local else _md5_of(self._info(relative))

    def stamp(self, relative: str) -> str:
        """Return what changes when an object is replaced, as in `listing`. One request.

        Raises `FileNotFoundError` if there is no such object.
        """
        return stamp_of(self._info(relative))

    @property
    def signs_urls(self) -> bool:
        """Whether the storage signs URLs by which anyone can read an object: `signed_url`."""
        return getattr(self._fs.sign, "__func__", None) is not AbstractFileSystem.sign

    def signed_url(self, relative: str, seconds: int) -> str:
        """Return a URL by which anyone can read an object for so many seconds.

        Raises `DatasetError` if the storage signs none.
        """

        def sign() -> str:
            try:
                return str(self._fs.sign(self._full(relative), expiration=seconds))
            except NotImplementedError as error:
                raise OSError("this storage signs no URLs") from error

        return self._do(relative, sign)

    def exists(self, relative: str) -> bool:
        """Return whether there is an object of this name."""
        return self.size(relative) is not None

    def write(self, relative: str, data: bytes) -> None:
        """Write an object atomically: an interrupted write leaves the old one.

        On a local disk it is written under a temporary name, synced and renamed. Raises
        `UsageError` for a web server, `DatasetError` if the object cannot be written.
        """
        full = self._full(relative)
        if self.is_local:
            self._write(relative, lambda: write_local(Path(full), data))
        else:
            self._write(relative, lambda: self._ask("pipe_file", full, data, size=len(data)))

    def write_together(
        self, files: Mapping[str, bytes | Path], once_staged: Callable[[], None]
    ) -> None:
        """Write several files of a local disk, from bytes or local files; raise as `write` does.

        All are written to the device before the first appears, so a full disk leaves all as
        they were. Then `once_staged` is called, and they appear in their order.
        """
        with ExitStack() as stack:  # which closes the last entry first
            for name, contents in reversed(list(files.items())):
                self._write(name, partial(stack.enter_context, staged(self.local(name), contents)))
            once_staged()

    def write_file(self, relative: str, file: Path) -> None:
        """Write an object from a local file, not held in memory; raise as `write` does."""
        full = self._full(relative)
        if self.is_local:
            self._write(relative, lambda: copy_local(file, Path(full)))
        else:
            size = file.stat().st_size
            self._write(relative, lambda: self._ask("put_file", str(file), full, size=size))

    def delete(self, relative: str) -> None:
        """Delete an object if it exists; raise as `write` does."""
        self.require_writable()
        with suppress(FileNotFoundError):
            self._do(relative, lambda: self._ask("rm_file", self._full(relative)))

    def require_writable(self) -> None:
        """Raise `UsageError` for a place that can never be written to."""
        is_hub = getattr(self._fs, "read_only", False)
        if is_hub or not self.can_list:
            raise UsageError(
                f"a {'dataset of a Hub' if is_hub else 'web server'} cannot be written to",
                where=self.url,
                expected="a path or a bucket, e.g. s3://bucket/lund-probe",
            )

    def _write(self, relative: str, action: Callable[[], Any]) -> None:
        self.require_writable()
        try:
            self._do(relative, action)
        except FileNotFoundError as error:
            what = (
                "there is a folder where a file should be, or a file instead of a folder"
                if self.is_local
                else "no such bucket"
            )
            raise DatasetError(
                f"cannot be written: {what}, or it was removed",
                where=self.path(relative),
                expected="one that exists",
                remedy="create it, or check the path or URL",
            ) from error

    def zarr_store(self, relative: str) -> Any:
        """Return a read-only store for zarr and xarray, which would take a text for a URL."""
        from zarr.storage import FsspecStore, LocalStore

        if self.is_local:
            return LocalStore(self.local(relative), read_only=True)
        path = self._full(relative)
        fs, _ = open_files(self._pinned, {"asynchronous": True, **self._limited})
        if not fs.async_impl:
            fs = AsyncFileSystemWrapper(fs, asynchronous=True)
        return FsspecStore(fs, read_only=True, path=path)


def _leads_out(relative: str) -> bool:
    """Return whether a disk or server may take a name for one outside of the dataset."""
    if relative.startswith("/") or not relative.isprintable() or not _FOREIGN.isdisjoint(relative):
        return True
    return ".." in relative.split("/")


def _entry(info: Mapping[str, Any]) -> Entry:
    return Entry(int(info["size"]), _md5_of(info), stamp_of(info))


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return what identifies a version of an object: its modification time, or its ETag."""
    for name in ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


def _md5_of(info: Mapping[str, Any]) -> bytes | None:
    """Return the MD5 that the server computed: S3's ETag of a single upload, GCS's md5Hash."""
    tag = str(info.get("ETag", "")).strip('"')
    if len(tag) == 32 and set(tag) <= set("0123456789abcdef"):
        return bytes.fromhex(tag)
    google = info.get("md5Hash")
    return base64.b64decode(google) if isinstance(google, str) else None


def md5(data: bytes) -> bytes:
    """Return the MD5 of `data`, to compare with a server's; no protection against tampering."""
    return hashlib.md5(data, usedforsecurity=False).digest()
