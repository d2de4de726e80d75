"""A revision as the Hugging Face Hub describes a repository: its card, its files, its tree."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import yaml

from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.service.datasets.index import File, Index, pointer_size

_LOG = logging.getLogger("lundprobe_zarr.service")

#: The front matter of a dataset card (Markdown): YAML between two lines of dashes.
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
#: Keys of the front matter that the Hub repeats as tags, `key:value`.
_TAGS = ("task_categories", "license", "size_categories", "annotations_creators", "language")
#: How Hub clients read a time; they take no other form.
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
#: Modes of a file and of a folder in git's trees.
_FILE_MODE, _FOLDER_MODE = b"100644", b"40000"


@dataclass(frozen=True)
class Json:
    """A JSON text that many requests ask for, compressed once."""

    text: bytes

    @cached_property
    def zipped(self) -> bytes:
        """The text compressed with gzip."""
        return gzip.compress(self.text, 6, mtime=0)


@dataclass(frozen=True)
class Page:
    """A part of a listing.

    Attributes
    ----------
    entries : list of dict
        Files and folders in the Hub's form.
    rest : int or None
        Position that the next part begins at; None at the end.
    """

    entries: list[dict[str, Any]]
    rest: int | None


class Repository:
    """What the Hub's API says of a dataset at one revision. Nothing in it ever changes.

    Parameters
    ----------
    name : str
        `owner/name`.
    manifest : Manifest
        The dataset's manifest.
    index : Index
        Its files.
    card : bytes
        Its card, `README.md`; empty if it has none.
    """

    def __init__(self, name: str, manifest: Manifest, index: Index, card: bytes) -> None:
        self.name = name
        self.index = index
        self.time = _time(manifest.created)
        self.title = f"{manifest.name}, {manifest.precision}, as of {manifest.created}"
        self._restricted = not manifest.synthetic
        self.card = front_matter(card)

    @property
    def sha(self) -> str:
        """The revision, 40 hex digits."""
        return self.index.sha

    @cached_property
    def tags(self) -> list[str]:
        """The tags by which the Hub filters datasets."""
        found = [f"{key}:{value}" for key in _TAGS for value in _texts(self.card.get(key))]
        return [*found, *_texts(self.card.get("tags"))]

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the Hub says of a dataset, without its files."""
        return {
            "_id": self.sha[:24],
            "id": self.name,
            "author": self.name.partition("/")[0],
            "sha": self.sha,
            "lastModified": self.time,
            "createdAt": self.time,
            "private": True,
            "gated": "manual" if self._restricted else False,
            "disabled": False,
            "tags": self.tags,
            "downloads": 0,
            "likes": 0,
            "cardData": self.card,
        }

    @cached_property
    def info(self) -> Json:
        """All that is said of it, with the name of each file."""
        return _packed(self.about | {"siblings": self.siblings(sizes=False)})

    @cached_property
    def info_with_sizes(self) -> Json:
        """All that is said of it, with name, size and hashes of each file."""
        return _packed(self.about | {"siblings": self.siblings(sizes=True)})

    def siblings(self, sizes: bool) -> list[dict[str, Any]]:
        """Return each file, in the form that `dataset_info` has them."""
        if not sizes:
            return [{"rfilename": path} for path in self.index.files]
        return [_sibling(file) for file in self.index.files.values()]

    @property
    def last_commit(self) -> dict[str, str]:
        """The one commit there is, as trees refer to it."""
        return {"id": self.sha, "title": self.title, "date": self.time}

    def listing(
        self, folder: str, recursive: bool, expand: bool, start: int, most: int
    ) -> Page | None:
        """Return a part of what is in a folder: `most` entries from the position `start`.

        None if there is no such folder; the root is "". Folders come before what is in them.
        """
        folders = self.index.folders
        if folder not in folders:
            return None
        if recursive:
            first, last = _span(self._paths, f"{folder}/" if folder else "")
            found: Sequence[str] = self._paths[first + start : min(first + start + most, last)]
            total = last - first
        else:
            base = f"{folder}/" if folder else ""
            names = folders[folder]
            found = [base + name.removesuffix("/") for name in names[start : start + most]]
            total = len(names)
        rest = start + most if start + most < total else None
        return Page([self.entry(path, expand) for path in found], rest)

    def entry(self, path: str, expand: bool = False) -> dict[str, Any]:
        """Return a file or folder in the form that trees have. Raises `KeyError` for neither."""
        file = self.index.files.get(path)
        if file is None:
            found: dict[str, Any] = {
                "type": "directory",
                "oid": self._tree_ids[path],
                "size": 0,
                "path": path,
            }
        else:
            found = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            if file.sha256 is not None:
                found["lfs"] = _lfs(file, "oid")
        return found | {"lastCommit": self.last_commit} if expand else found

    def has(self, path: str) -> bool:
        """Return whether there is a file or folder with this path."""
        return path in self.index.files or path in self.index.folders

    @cached_property
    def _paths(self) -> list[str]:
        """Paths of all files and folders, sorted: what is in a folder is one run of them."""
        return sorted([*self.index.files, *filter(None, self.index.folders)])

    @cached_property
    def _tree_ids(self) -> Mapping[str, str]:
        """git's id (SHA-1, hex) of each folder."""
        ids: dict[str, str] = {}
        # Deep ones first: a folder's id is of the ids of those in it.
        for folder in sorted(self.index.folders, key=lambda f: f.count("/") if f else -1)[::-1]:
            base = f"{folder}/" if folder else ""
            lines = []
            for name in self.index.folders[folder]:  # sorted as git does: a folder's ends with /
                plain = name.removesuffix("/")
                is_folder = plain != name
                oid = ids[base + plain] if is_folder else self.index.files[base + plain].oid
                mode = _FOLDER_MODE if is_folder else _FILE_MODE
                lines.append(mode + b" " + plain.encode() + b"\0" + bytes.fromhex(oid))
            ids[folder] = _tree_id(b"".join(lines))
        return ids


def _packed(content: Mapping[str, Any]) -> Json:
    found = Json(json.dumps(content, separators=(",", ":")).encode())
    _ = found.zipped  # while a thread is at it
    return found


def _span(paths: Sequence[str], prefix: str) -> tuple[int, int]:
    """Return where the paths begin and end that start with a prefix, in sorted ones."""
    if not prefix:
        return 0, len(paths)
    first = bisect_left(paths, prefix)
    return first, bisect_left(paths, prefix[:-1] + chr(ord(prefix[-1]) + 1), first)


def _sibling(file: File) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": file.path, "size": file.size, "blobId": file.oid}
    if file.sha256 is not None:
        found["lfs"] = _lfs(file, "sha256")
    return found


def _lfs(file: File, key: str) -> dict[str, Any]:
    """Return what is said of a large file: trees call its SHA-256 `oid`, and siblings `sha256`."""
    assert file.sha256 is not None
    size = pointer_size(file.sha256, file.size)
    return {key: file.sha256, "size": file.size, "pointerSize": size}


def _tree_id(content: bytes) -> str:
    head = b"tree %d\0" % len(content)
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def _time(text: str) -> str:
    """Return a time as Hub clients read it; the epoch for what is no time in ISO 8601."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = datetime.fromtimestamp(0, UTC)
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return found.astimezone(UTC).strftime(_TIME)


def _texts(value: Any) -> Iterable[str]:
    """Return one text or several of a card as texts."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def front_matter(card: bytes) -> dict[str, Any]:
    """Return the front matter of a dataset card; without a valid one, nothing, which is logged."""
    found = _FRONT_MATTER.match(card.decode("utf-8", "replace"))
    if found is None:
        return {}
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        _LOG.warning("the dataset card's front matter is not YAML: %s", error)
        return {}
    # YAML knows dates and keys that are no texts; JSON does not.
    text = json.dumps(data, default=str, skipkeys=True)
    return dict(json.loads(text)) if isinstance(data, dict) else {}
