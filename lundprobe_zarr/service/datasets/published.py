"""A dataset that is served: its index, its tables, and what becomes of it when it is replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.dataset.opening import read_manifest
from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.schema.document import sha256_of
from lundprobe_zarr.schema.manifest import MANIFEST_NAME, Manifest
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.datasets.index import File, Index, keep_index
from lundprobe_zarr.service.datasets.repository import Repository
from lundprobe_zarr.service.datasets.tables import Tables
from lundprobe_zarr.storage.location import Location

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Seconds between looks at whether a dataset was replaced.
_LOOK_SECONDS = 2.0
#: Folder of a dataset whose files are voxels; all others are tables.
_STORES = "patients/"
_CARD = "README.md"


@dataclass(frozen=True)
class Revision:
    """A dataset at one revision: what a request works with from its first to its last byte."""

    name: str
    dataset: Dataset
    index: Index
    repository: Repository

    @property
    def sha(self) -> str:
        """The revision, 40 hex digits."""
        return self.index.sha

    @cached_property
    def cohort(self) -> Cohort:
        """All patients."""
        return Cohort(self.dataset)

    @cached_property
    def tables(self) -> Tables:
        """The tables, for the viewer's API and for SQL."""
        return Tables(self.dataset)

    @property
    def how_to_apply(self) -> str:
        """How to get access, for those who have none: the access terms of the manifest."""
        return self.dataset.manifest.access

    def file(self, path: str) -> File | None:
        """Return the file with this path; None if there is none."""
        return self.index.files.get(path)


def usual_name(manifest: Manifest) -> str:
    """Return the name of a dataset that is given none."""
    return f"{'phantom' if manifest.synthetic else 'lund-probe'}/{manifest.precision}"


def kind_of(path: str) -> Kind:
    """Return the kind of content that a file of a dataset is."""
    return Kind.VOXELS if path.startswith(_STORES) else Kind.TABLES


def require_synthetic(location: Location, manifest: Manifest) -> None:
    """Raise `UsageError` for a dataset of real patients, which `--public` alone does not give."""
    if not manifest.synthetic:
        raise UsageError(
            "--public: a dataset of real patients, which is under controlled access",
            where=location.url,
            expected="synthetic data",
            remedy="leave --public out; or, if the terms allow it, add --allow-public",
        )


class Published:
    """A dataset under its name on this service, always at the revision that is there now.

    With `synthetic_only`, a dataset of real patients is refused, whenever it comes.
    """

    def __init__(
        self, name: str, location: Location, state: Path, synthetic_only: bool = False
    ) -> None:
        self.name = name
        self.location = location
        self._state = state
        self._synthetic_only = synthetic_only
        #: Its folder on a local disk; None elsewhere.
        self.root = str(location.local()) if location.is_local else None
        self._refused: set[File] = set()
        self.revision = self._open()
        self._looked = ""

    def _open(self) -> Revision:
        """Open what is there; once more if it is replaced while it is opened."""
        manifest, text = read_manifest(self.location)
        while True:
            if self._synthetic_only:
                require_synthetic(self.location, manifest)
            dataset = Dataset(self.location, manifest)
            index = keep_index(dataset, sha256_of(text), self._state)
            opened = text
            manifest, text = read_manifest(self.location)
            if text == opened:
                _LOG.info("serving %s at revision %s", self.name, index.sha)
                self._refused = set()
                return self._revision(dataset, index)

    def _revision(self, dataset: Dataset, index: Index) -> Revision:
        card = self.location.read(_CARD) if _CARD in index.files else b""
        repository = Repository(self.name, dataset.manifest, index, card)
        return Revision(self.name, dataset, index, repository)

    def refused(self, file: File) -> None:
        """Log that a file is not the one of the index: once a file and revision, however asked."""
        if file not in self._refused:
            self._refused.add(file)
            _LOG.warning(
                "%s: %s is not the file that was indexed: the dataset is being replaced",
                self.name,
                file.path,
            )

    async def follow(self, stopping: asyncio.Event) -> None:
        """Look every two seconds whether the dataset was replaced, and serve what is there then.

        What cannot be read or is damaged is logged; the revision before stays in force, whose
        replaced files are refused. Ends when `stopping` is set, after a look that has begun: a
        thread cannot be broken off.
        """
        while not await _is_set_within(stopping, _LOOK_SECONDS):
            try:
                await asyncio.to_thread(self.refresh)
            except (LundProbeError, OSError) as error:
                _LOG.error("%s cannot be looked at: %s", self.name, error)

    def refresh(self) -> None:
        """Serve what is there now if the manifest has changed. Raises like `keep_index`."""
        stamp = self.location.stamp(MANIFEST_NAME)
        if stamp == self._looked:
            return
        _, text = read_manifest(self.location)
        if sha256_of(text) != self.revision.index.manifest_sha256:
            self.revision = self._open()
        self._looked = stamp


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until the event is set, at most so long; return whether it is."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def publish(
    datasets: Mapping[str, str],
    options: Mapping[str, Any],
    state: Path,
    synthetic_only: bool = False,
) -> dict[str, Published]:
    """Open every dataset to serve, by its name. Raises like `keep_index`, `require_synthetic`."""
    return {
        name: Published(name, Location(url, options), state, synthetic_only)
        for name, url in datasets.items()
    }
