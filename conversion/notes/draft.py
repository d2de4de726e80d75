"""Drafts: incomplete stores, and their move to the final location.

On a local disk a draft is written next to its final location under a hidden name, then renamed. For
a bucket it is written and verified in a scratch folder, then uploaded: data first, then metadata,
the root last. A killed conversion therefore never leaves a store that looks complete. The next
conversion removes its leftovers.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lundprobe_zarr.conversion.notes.lease import LEASES, lease_upload
from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.integrity.copy import send_store
from lundprobe_zarr.integrity.foreign import foreign_files
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.failures import meaning
from lundprobe_zarr.storage.folders import REPLACED, remove, replace_folder
from lundprobe_zarr.storage.local import WRITING, require_folder, write_local
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive, writer

_PARTIAL = ".partial-"
#: Errors for a place where this user may not write, which is no fault of the place.
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SCRATCH, _PROBE = "lundprobe-zarr-", "probe-"
#: Folders with single files of a dataset, such as notes and leases.
_FOLDERS = ("metadata", "metadata/*", NOTES, f"{NOTES}/*", f"{NOTES}/claims/*")
#: Leftovers of another host count as abandoned if they have not changed for a day.
_STALE_SECONDS = 86_400
#: Objects uploaded at a time. Each is in memory, at most 100 MB; less than conversion needs.
_SENDERS = 4


def located(place: Location | str | os.PathLike[str]) -> Location:
    """Return a dataset's location from a location, path or URL."""
    return place if isinstance(place, Location) else Location(place)


def require_usable(dataset: Location, scratch: Path | None = None) -> None:
    """Require that a dataset can be written at `dataset`, and in scratch if it is needed.

    Writes, reads, lists and deletes an object, which is the only way to know the permissions of a
    bucket. Raises `UsageError` or `DatasetError` with the problem.
    """
    dataset.require_writable()
    if dataset.in_memory:
        raise UsageError(
            "the memory of this process, which workers do not share",
            where=dataset.url,
            expected="a path or a bucket, e.g. s3://bucket/lund-probe",
        )
    if scratch is not None and dataset.is_local:
        raise UsageError(
            f"--scratch {scratch}: stores in {dataset.url} are written in place",
            expected="--scratch only for buckets",
            remedy="leave it out",
        )
    if not dataset.is_local:
        _make_scratch(scratch).rmdir()
    _require_allowed(dataset)


def require_vacant(source: Path, dataset: Location) -> None:
    """Require that `dataset` is a suitable destination; write nothing.

    Raises `UsageError` if it overlaps the `source`, is or is below a file, or has other files that
    a dataset would replace.
    """
    if dataset.is_local:
        _require_apart(source, dataset.local())
        require_folder(dataset.local(), f"destination {dataset.url}")
    held = foreign_files(dataset)
    if held:
        raise UsageError(
            f"destination {dataset.url} is no dataset and has "
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
    name, contents = f"{_PROBE}{writer()}", b"may objects be written here?"
    probe = f"{NOTES}/{name}"
    _write_probe(dataset, probe, contents)
    try:
        listed = dataset.is_local or name in dataset.children(NOTES)
        if dataset.read(probe) != contents or not listed:
            raise DatasetError(
                "an object just written is not listed, or differs",
                where=dataset.path(probe),
                expected="storage that returns what was written",
                remedy="choose another destination",
            )
    finally:
        dataset.delete(probe)


def _write_probe(dataset: Location, probe: str, contents: bytes) -> None:
    """Write the object. An error is about the dataset's folder, whose name the user knows.

    Raises `UsageError` for a local folder that this user may not write to, else `DatasetError`.
    """
    try:
        if dataset.is_local:
            write_local(dataset.local(probe), contents)
        else:
            dataset.write(probe, contents)
    except DatasetError as error:
        error.where = dataset.url
        raise
    except OSError as error:
        finding, remedy = meaning(error)
        kind = UsageError if error.errno in _NOT_ALLOWED else DatasetError
        raise kind(f"cannot be written: {finding}", where=dataset.url, remedy=remedy) from error


@dataclass(frozen=True)
class Draft:
    """A store that is being written in `folder`, below the temporary folder `home`."""

    dataset: Location
    patient_id: str
    home: Path
    folder: Path

    def appear(self) -> None:
        """Move the complete and verified store to its final location in the dataset.

        Raises `OSError`, such as `DatasetError` or `VerificationError`, if that fails.
        """
        if self.dataset.is_local:
            replace_folder(self.folder, self.dataset.local(store_path(self.patient_id)))
        else:
            with lease_upload(self.dataset, self.patient_id):
                send_store(Location(self.home), self.dataset, self.patient_id, _SENDERS)


@contextmanager
def drafted(dataset: Location, patient_id: str, scratch: Path | None = None) -> Iterator[Draft]:
    """Make a draft of a patient's store, and remove what is left of it at the end.

    If the dataset is in a bucket, the draft is below `scratch`, by default the system's folder for
    temporary files. Raises `OSError` if it cannot be written.
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
    """Return where a store's draft is written, for messages."""
    return dataset.url if dataset.is_local else str(_scratch_root(scratch))


def _scratch_root(scratch: Path | None) -> Path:
    return Path(tempfile.gettempdir()) if scratch is None else scratch


def _make_scratch(scratch: Path | None) -> Path:
    """Make a new folder that only this user can read, because it will contain patient data."""
    root = _scratch_root(scratch)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{_SCRATCH}{writer()}"
    folder.mkdir(mode=0o700)
    return folder


def remove_unfinished(dataset: Location) -> None:
    """Remove single objects that killed conversions left: leases, probes, unfinished files.

    Objects of another machine stay if it is unknown whether their process is alive.
    """
    for name in dataset.find(NOTES):
        folder, _, leaf = name.rpartition("/")
        is_lease = folder.partition("/")[0] in LEASES or leaf.startswith(_PROBE)
        if is_lease and is_alive(leaf.removeprefix(_PROBE)) is False:
            dataset.delete(f"{NOTES}/{name}")
    if dataset.is_local:  # in a bucket, objects are never incomplete
        root = dataset.local()
        for place in (root, *(found for pattern in _FOLDERS for found in root.glob(pattern))):
            _remove_abandoned(place, WRITING, ".*")


def remove_leftovers(
    dataset: Location,
    patient_ids: Iterable[str],
    scratch: Path | None = None,
    alone: bool = False,
) -> None:
    """Remove the leftovers of killed conversions of these patients.

    Another machine may still be writing its drafts, so they are removed only if this conversion is
    `alone` or they are old. On a local disk, a store that was moved away is put back. Objects of an
    incomplete store in a bucket stay: readers ignore a store without a root, and the next
    conversion of the patient reuses them.
    """
    if dataset.is_local:
        stores = [dataset.local(store_path(patient_id)) for patient_id in patient_ids]
        if stores:
            _remove_local(stores[0].parent, {store.name for store in stores}, alone)
    else:
        _remove_abandoned(_scratch_root(scratch), _SCRATCH)


def _remove_local(folder: Path, stores: Container[str], alone: bool) -> None:
    """Remove the leftovers of all `stores`, in one listing of the folder."""
    for left in folder.glob(".*"):
        name, mark, _ = left.name[1:].partition(_PARTIAL)
        if mark and name in stores and (alone or _is_abandoned(left, f".{name}{mark}")):
            remove(left)
        name, mark, _ = left.name[1:].partition(REPLACED)
        if mark and name in stores:
            _put_back(left, folder / name)


def _put_back(old: Path, final: Path) -> None:
    """Undo an unfinished replacement; after a finished one remove the old store."""
    if old.is_dir() and not final.exists():
        with suppress(OSError):  # another worker may have done it
            old.rename(final)
            return
    remove(old)


def _remove_abandoned(folder: Path, prefix: str, before: str = "") -> None:
    for left in folder.glob(f"{before}{prefix}*-*-*"):
        if _is_abandoned(left, prefix):
            remove(left)


def _is_abandoned(left: Path, prefix: str) -> bool:
    # A live process may have reused the number of a killed one, so a live process is no proof.
    if is_alive(left.name.rpartition(prefix)[2]) is False:
        return True
    try:
        return time.time() - left.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:  # its writer has just ended
        return False
