"""The index of a served dataset: each file with its size and the ids that Hub clients expect.

No path of a request ever reaches a file system: it is looked up here. The index is made of the
dataset's own metadata, so it lists just what a dataset consists of, without the converter's notes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.dataset.objects import ROOT, SIDE_FILES, store_objects, table_files
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.local import write_local
from lundprobe_zarr.storage.location import Entry, Location
from lundprobe_zarr.stores.opening import read_store

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Raise this when what an index holds changes: indexes kept on disk are then made again.
_FORMAT = 1
#: Length of a revision, as git and the Hub have it: hexadecimal digits.
_REVISION_DIGITS = 40
#: Small files read at a time while an index is made.
_BATCH = 2000
#: Stores named of those that are not served.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class File:
    """One file of a dataset.

    Attributes
    ----------
    path : str
        Path relative to the dataset.
    size : int
        Bytes.
    oid : str
        git's blob id (SHA-1, hex): of the contents or, where there is a `sha256`, of the pointer
        that git-lfs would keep in its place.
    sha256 : str or None
        SHA-256 (hex) of the contents of a shard, as conversion recorded it.
    stamp : str
        When it was last changed, as the storage says; used to notice a replaced file.
    """

    path: str
    size: int
    oid: str
    sha256: str | None
    stamp: str

    @property
    def etag(self) -> str:
        """Its entity tag, without quotes: derived from the contents, safe as a file name."""
        return self.sha256 or self.oid


class Index:
    """All files of a dataset at one revision.

    Attributes
    ----------
    manifest_sha256 : str
        SHA-256 (hex) of the manifest that the index was made from.
    files : mapping of str to File
        Each file by its path, in the order of the paths.
    """

    def __init__(self, manifest_sha256: str, files: Iterable[File]) -> None:
        self.manifest_sha256 = manifest_sha256
        self.files: Mapping[str, File] = {f.path: f for f in sorted(files, key=_path)}

    @cached_property
    def sha(self) -> str:
        """The revision: 40 hex digits, a hash of all paths, sizes and contents.

        It differs from the manifest's content hash, which is equal for copies stored differently:
        clients cache bytes by revision.
        """
        lines = (f"{f.path}\t{f.size}\t{f.etag}\n" for f in self.files.values())
        digest = hashlib.sha256("".join(lines).encode())
        return digest.hexdigest()[:_REVISION_DIGITS]

    @cached_property
    def folders(self) -> Mapping[str, tuple[str, ...]]:
        """Names directly below each folder, sorted; the root is "". Folders' names end with "/"."""
        below: dict[str, set[str]] = {"": set()}
        for path in self.files:
            folder, _, name = path.rpartition("/")
            while name not in below.setdefault(folder, set()):
                below[folder].add(name)
                if not folder:
                    break
                folder, _, name = folder.rpartition("/")
                name += "/"
        return {folder: tuple(sorted(names)) for folder, names in below.items()}

    def dump(self) -> bytes:
        """Return the index as JSON, for `load`."""
        rows = [(f.path, f.size, f.oid, f.sha256, f.stamp) for f in self.files.values()]
        document = {"format": _FORMAT, "manifest_sha256": self.manifest_sha256, "files": rows}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def load(cls, text: bytes) -> Index | None:
        """Return the index that `dump` wrote; None for another format or a damaged text."""
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                return None
            return cls(document["manifest_sha256"], (File(*row) for row in document["files"]))
        except (ValueError, KeyError, TypeError):
            return None


def _path(file: File) -> str:
    return file.path


def blob_id(data: bytes) -> str:
    """Return git's id (SHA-1, hex) of a file with these contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer_id(sha256: str, size: int) -> str:
    """Return git's id of the git-lfs pointer to a file with this SHA-256 and size.

    The pointer's text is that of the git-lfs specification, version 1.
    """
    return blob_id(_pointer(sha256, size))


def pointer_size(sha256: str, size: int) -> int:
    """Return the bytes of the git-lfs pointer to a file with this SHA-256 and size."""
    return len(_pointer(sha256, size))


def _pointer(sha256: str, size: int) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()


def make_index(dataset: Dataset, manifest_sha256: str) -> Index:
    """Make the index of a dataset: list it, and read its small files.

    Stores that are damaged or not there are left out; one line of the log counts them. Raises
    `DatasetError` if the dataset cannot be listed or read.
    """
    location = dataset.location
    listing = location.listing("")
    shards: dict[str, str] = {}
    small = [MANIFEST_NAME, *SIDE_FILES, *table_files(dataset.manifest)]
    damaged: list[DamagedStoreError] = []
    for patient_id in dataset.ids:
        try:
            small.extend(_of_store(location, patient_id, listing, shards))
        except DamagedStoreError as error:
            damaged.append(error)
    if damaged:
        _LOG.warning("%s", _left_out(damaged, len(dataset.ids)))
    files = [*_shards(shards, listing), *_small(location, small, listing)]
    return Index(manifest_sha256, files)


def _left_out(damaged: Sequence[DamagedStoreError], patients: int) -> str:
    """Return the line of the log about stores that are not served: how many, and the first."""
    said = "; ".join(str(error) for error in damaged[:_NAMED])
    more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    return f"the stores of {len(damaged)} of {patients} patients are not served: {said}{more}"


def _of_store(
    location: Location, patient_id: str, listing: Mapping[str, Entry], shards: dict[str, str]
) -> list[str]:
    """Add a store's shards, by path with their SHA-256; return the paths of its other files."""
    text, place = read_store(location, patient_id)
    base, small, found = store_path(patient_id), [], {}
    for item in store_objects(text, place):
        path = f"{base}/{item.name}"
        if item.sha256 is None:
            small.append(path)
        elif path not in listing or listing[path].size != item.size:
            there = f"{listing[path].size} bytes" if path in listing else "not there"
            raise place.damaged(f"{item.name}: {there}", f"{item.size} bytes")
        else:
            found[path] = item.sha256
    shards |= found
    return [f"{base}/{ROOT}", *small]


def _shards(shards: Mapping[str, str], listing: Mapping[str, Entry]) -> Iterator[File]:
    for path, sha256 in shards.items():
        entry = listing[path]
        oid = pointer_id(sha256, entry.size)
        yield File(path, entry.size, oid, sha256, entry.stamp)


def _small(
    location: Location, paths: Iterable[str], listing: Mapping[str, Entry]
) -> Iterator[File]:
    wanted = [path for path in dict.fromkeys(paths) if path in listing]
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        for path, data in zip(batch, location.read_each(batch), strict=True):
            if data is not None:
                yield File(path, len(data), blob_id(data), None, listing[path].stamp)


def keep_index(dataset: Dataset, manifest_sha256: str, folder: Path) -> Index:
    """Return the index of a dataset, from `folder` if it was made of the same manifest.

    `folder` is outside the dataset: indexes are kept there, one file a dataset. Raises like
    `make_index`.
    """
    name = hashlib.sha256(dataset.location.url.encode()).hexdigest()[:16]
    file = folder / f"index-{name}.json"
    with _alone(folder):  # of several workers one makes it, the others wait and load it
        kept = Index.load(file.read_bytes()) if file.is_file() else None
        if kept is not None and kept.manifest_sha256 == manifest_sha256:
            return kept
        made = make_index(dataset, manifest_sha256)
        write_local(file, made.dump())
        return made


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder, on systems with file locks."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it names patients
    with (folder / "index.lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def summary(index: Index) -> dict[str, Any]:
    """Return counts for people: files and bytes."""
    sizes = [f.size for f in index.files.values()]
    return {"files": len(sizes), "bytes": sum(sizes)}
