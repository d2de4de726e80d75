"""Where a store is written before it is complete, and how it then takes its place.

On a local disk it is written beside, under a hidden name, and renamed. For a bucket it is written
in a scratch folder, verified there, and sent: data first, metadata after it, its root last. Either
way a killed conversion leaves no store that could be taken for good, and what it leaves behind is
cleared by the next.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lundprobe_zarr.conversion.notes.claim import CLAIMS, claimed
from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.integrity.copy import send_store
from lundprobe_zarr.integrity.foreign import foreign_files
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.local import WRITING, require_folder
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive, writer

_PARTIAL, _REPLACED = ".partial-", ".replaced-"
_SCRATCH, _PROBE = "lundprobe-zarr-", "probe-"
#: Where single files of a dataset are beside those in its root, notes and claims among them.
_FOLDERS = ("metadata", "metadata/*", NOTES, f"{NOTES}/*", f"{NOTES}/claims/*")
#: What is left of another host that has not changed for a day is taken for abandoned.
_STALE_SECONDS = 86_400
#: Objects sent at a time. Each is held in memory, 100 MB at most; less than conversion needs.
_SENDERS = 4


def located(place: Location | str | os.PathLike[str]) -> Location:
    """A dataset's location, given as such or as a path or URL."""
    return place if isinstance(place, Location) else Location(place)


def require_usable(dataset: Location, scratch: Path | None = None) -> None:
    """Require that a dataset can be written at `dataset`, and scratch where it needs some.

    Writes an object, reads it, lists it and deletes it: what a bucket allows shows no other way.
    Raises `UsageError` or `DatasetError` that says what is amiss.
    """
    dataset.require_writable()
    if dataset.in_memory:
        raise UsageError(
            "memory of this process, which workers do not share",
            where=dataset.url,
            expected="a path or a bucket, e.g. s3://bucket/lund-probe",
        )
    if scratch is not None and dataset.is_local:
        raise UsageError(
            f"--scratch {scratch}: stores in {dataset.url} are written beside their place",
            expected="it for buckets alone",
            remedy="leave it out",
        )
    if not dataset.is_local:
        _make_scratch(scratch).rmdir()
    _require_allowed(dataset)


def require_vacant(source: Path, dataset: Location) -> None:
    """Require that a dataset may be at `dataset`; writes nothing.

    Raises `UsageError` if it overlaps the `source`, is or lies below a file, or holds files that
    are no dataset's and that one would replace.
    """
    if dataset.is_local:
        _require_apart(source, dataset.local())
        require_folder(dataset.local(), f"destination {dataset.url}")
    held = foreign_files(dataset)
    if held:
        raise UsageError(
            f"destination {dataset.url} is no dataset and holds "
            f"{', '.join(held)}, which a dataset would replace",
            expected="a new folder, an empty one or a dataset",
            remedy="choose another destination, or move these away",
        )


def _require_apart(source: Path, destination: Path) -> None:
    target = destination.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UsageError(
            f"destination {target} and source {source} overlap", expected="separate folders"
        )


def _require_allowed(dataset: Location) -> None:
    name, said = f"{_PROBE}{writer()}", b"may objects be written here?"
    probe = f"{NOTES}/{name}"
    dataset.write(probe, said)
    try:
        listed = dataset.is_local or name in dataset.children(NOTES)
        if dataset.read(probe) != said or not listed:
            raise DatasetError(
                "an object just written is not listed, or not as written",
                where=dataset.path(probe),
                expected="a place that gives back what it was given",
                remedy="choose another",
            )
    finally:
        dataset.delete(probe)


@dataclass(frozen=True)
class Draft:
    """A store being written: in `folder`, below `home`, which is removed in the end."""

    dataset: Location
    patient_id: str
    home: Path
    folder: Path

    def appear(self) -> None:
        """Let the complete and verified store take its place in the dataset.

        Raises `OSError`, of which `DatasetError` and `VerificationError` are, if it does not.
        """
        if self.dataset.is_local:
            _replace(self.folder, self.dataset.local(store_path(self.patient_id)))
        else:
            with claimed(self.dataset, self.patient_id):
                send_store(Location(self.home), self.dataset, self.patient_id, _SENDERS)


@contextmanager
def drafted(dataset: Location, patient_id: str, scratch: Path | None = None) -> Iterator[Draft]:
    """A draft of a patient's store; within, it is written and takes its place.

    `scratch` is the folder to write below if the dataset is in a bucket, by default the system's
    for temporary files. Raises `OSError` if nothing can be written there.
    """
    remove_leftovers(dataset, [patient_id], scratch)
    if dataset.is_local:
        final = dataset.local(store_path(patient_id))
        home = folder = final.with_name(f".{final.name}{_PARTIAL}{writer()}")
    else:
        home = _make_scratch(scratch)
        folder = home / store_path(patient_id)
    try:
        folder.mkdir(parents=True)
        yield Draft(dataset, patient_id, home, folder)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def written_to(dataset: Location, scratch: Path | None) -> str:
    """Where a store is written before it appears: for messages."""
    return dataset.url if dataset.is_local else str(_scratch_root(scratch))


def _scratch_root(scratch: Path | None) -> Path:
    return Path(tempfile.gettempdir()) if scratch is None else scratch


def _make_scratch(scratch: Path | None) -> Path:
    """A new folder that only this user can read: it will hold a patient's images."""
    root = _scratch_root(scratch)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{_SCRATCH}{writer()}"
    folder.mkdir(mode=0o700)
    return folder


def remove_unfinished(dataset: Location) -> None:
    """Clear what killed conversions left of single objects: claims, probes, files half written.

    Those of a process on another machine stay if it cannot be told whether it lives.
    """
    for name in dataset.find(NOTES):
        folder, _, leaf = name.rpartition("/")
        is_claim = folder.partition("/")[0] in CLAIMS or leaf.startswith(_PROBE)
        if is_claim and is_alive(leaf.removeprefix(_PROBE)) is False:
            dataset.delete(f"{NOTES}/{name}")
    if dataset.is_local:  # in a bucket objects appear whole or not at all
        root = dataset.local()
        for place in (root, *(found for pattern in _FOLDERS for found in root.glob(pattern))):
            _remove_abandoned(place, WRITING, ".*")


def remove_leftovers(
    dataset: Location,
    patient_ids: Iterable[str],
    scratch: Path | None = None,
    alone: bool = False,
) -> None:
    """Clear what a killed conversion of these patients left.

    Of what another machine left it cannot be told at once whether anyone writes it still, unless
    this conversion is `alone`: then nobody has use for it.

    On a local disk a store that it had moved away is put back. What it left of a store in a bucket
    stays: without its root nobody reads it, and the next conversion of the patient uses it.
    """
    if dataset.is_local:
        stores = [dataset.local(store_path(patient_id)) for patient_id in patient_ids]
        if stores:
            _remove_local(stores[0].parent, {store.name for store in stores}, alone)
    else:
        _remove_abandoned(_scratch_root(scratch), _SCRATCH)


def _remove_local(folder: Path, stores: Container[str], alone: bool) -> None:
    """Look through the folder once, however many stores may have left something in it."""
    for left in folder.glob(".*"):
        name, mark, _ = left.name[1:].partition(_PARTIAL)
        if mark and name in stores and (alone or _is_abandoned(left, f".{name}{mark}")):
            _remove(left)
        name, mark, _ = left.name[1:].partition(_REPLACED)
        if mark and name in stores:
            _put_back(left, folder / name)


def _put_back(old: Path, final: Path) -> None:
    """Undo half a replacement; a whole one leaves something to clear."""
    if old.is_dir() and not final.exists():
        with suppress(OSError):  # another worker has just come before us
            old.rename(final)
            return
    _remove(old)


def _remove(left: Path) -> None:
    """Remove a folder, or whatever stood in its place: a pipe would wait to be opened."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, prefix: str, before: str = "") -> None:
    for left in folder.glob(f"{before}{prefix}*-*-*"):
        if _is_abandoned(left, prefix):
            _remove(left)


def _is_abandoned(left: Path, prefix: str) -> bool:
    # A process that lives may have got the number of one that was killed, so that it proves little.
    if is_alive(left.name.rpartition(prefix)[2]) is False:
        return True
    try:
        return time.time() - left.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:  # its writer has just ended
        return False


def _replace(folder: Path, final: Path) -> None:
    """Let a complete store appear under its name; the old one goes only once it has.

    A worker that was given up for lost may be alive and do the same at the same time: the last one
    stays.
    """
    _sync_tree(folder)
    moved = _moved_away(final)
    while not _appears(folder, final):
        moved += _moved_away(final)
    _sync(final.parent)
    for old in moved:
        _remove(old)


def _moved_away(final: Path) -> list[Path]:
    """Where a store that had the name is now, if there was one."""
    old = final.with_name(f".{final.name}{_REPLACED}{uuid.uuid4().hex[:8]}")
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
    """Bring a store down to the device, files before the folders that name them."""
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
