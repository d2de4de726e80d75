"""Restore a patient's NIfTI files from its store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from zlib_ng import gzip_ng

from lundprobe_zarr.dataset.predictions import StoredPredictions
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.exchange.output import require_new, require_outside
from lundprobe_zarr.exchange.predicted_files import COMPRESSION_LEVEL, PredictedFiles
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.folders import drafted
from lundprobe_zarr.storage.local import named
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, VolumeArray
from lundprobe_zarr.stores.nifti_bytes import nifti_parts
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.files import parse_path


@dataclass(frozen=True)
class Exported:
    """Files written, relative to the output folder.

    `identical` files are restored byte for byte (uncompressed). `rounded` files hold values that
    the conversion rounded. `stripped` files have every voxel, but not the header's free text.
    `predicted` files are masks of predictions.
    """

    identical: tuple[str, ...]
    rounded: tuple[str, ...]
    stripped: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()


def export_patient(
    location: Location,
    patient_id: str,
    out: Path,
    on_file: Callable[[str], None] = lambda path: None,
    predictions: StoredPredictions | None = None,
) -> Exported:
    """Write every source file of a patient below `out`, in the layout of the source.

    With `predictions`, each predicted mask is written beside them: see `PredictedFiles`.

    Each `.nii.gz` holds the original's uncompressed bytes, checked by SHA-256, unless conversion
    rounded its values or left out its header's text: see `Exported`. `out` may hold other patients.
    The patient's folder appears when all its files are written, so an interrupted export can simply
    be run again. Raises `UsageError` if that folder exists already, or if `out` is a file or in a
    dataset, `DamagedStoreError` if a restored file differs from the original, and `OSError` if a
    file cannot be written.
    """
    require_outside(out)
    store = open_store(location, patient_id)
    homes = _homes(store, out)
    predicted = PredictedFiles.of(predictions, store)
    with drafted(out / patient_id) as draft:
        exported = _write_files(location, store, draft, on_file)
        exported = replace(exported, predicted=predicted.write(draft, on_file))
        with named(out):
            for home in homes:
                (out / home).parent.mkdir(parents=True, exist_ok=True)
                (draft / home).rename(out / home)
    return exported


def _homes(store: StoreMetadata, out: Path) -> list[PurePosixPath]:
    """Return the patient's folders in the source's layout, usually one; refuse existing ones."""
    paths = [PurePosixPath(record.path) for _, record in store.records]
    homes = sorted({PurePosixPath(*path.parts[:2]) for path in paths})
    for home in homes:
        require_new(out / home)
    return homes


def _write_files(
    location: Location, store: StoreMetadata, out: Path, on_file: Callable[[str], None]
) -> Exported:
    exported: dict[str, list[str]] = {"identical": [], "rounded": [], "stripped": []}
    reader = StoreReader(location, store)
    for array, record in store.records:
        target = out / source_path(store, record)
        shown = out.parent / record.path  # what it will be called, not what its draft is
        with named(shown):
            target.parent.mkdir(parents=True, exist_ok=True)
        if array is not None:
            write_nifti(reader, array, record, target, shown)
        else:
            with named(shown):
                target.write_bytes((record.text or "").encode(record.encoding))
        exported[outcome(record)].append(record.path)
        on_file(record.path)
    return Exported(**{name: tuple(paths) for name, paths in exported.items()})


def outcome(record: SourceRecord) -> str:
    """Return which field of `Exported` a file belongs to."""
    if not record.restores:
        return "rounded"
    return "stripped" if record.stripped else "identical"


def source_path(store: StoreMetadata, record: SourceRecord) -> PurePosixPath:
    """Return a file's path in the source tree; refuse paths that the source tree does not have."""
    home = f"{store.attributes['part']}Part/{store.patient_id}/"
    if not record.path.startswith(home) or parse_path(record.path[len(home) :]) is None:
        raise DamagedStoreError(
            f"source path {record.path!r} is not part of the source tree's layout",
            where=store.where,
            expected=f"a known file below {home}",
            remedy="the store is damaged or was tampered with",
        )
    return PurePosixPath(record.path)


@contextmanager
def gzipped(target: Path, shown: Path) -> Iterator[Any]:
    """Within, what is written becomes a `.nii.gz`; the system's errors say `shown`."""
    with (
        named(shown),
        target.open("wb") as raw,
        # mtime 0 makes the file reproducible
        gzip_ng.GzipNGFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as file,
    ):
        yield file


def write_nifti(
    reader: StoreReader, array: VolumeArray, record: SourceRecord, target: Path, shown: Path
) -> None:
    """Write a file as it was in the source; raises as `export_patient` does."""
    volume = reader.volume(array, record)
    sha256 = hashlib.sha256()
    with gzipped(target, shown) as file:
        for part in nifti_parts(record, volume):
            sha256.update(part)
            file.write(part)
    if record.restores and sha256.hexdigest() != record.nifti_sha256:
        raise StorePlace(reader.location.url, reader.metadata.patient_id, array.spec.path).damaged(
            f"{record.path} cannot be rebuilt: SHA-256 {sha256.hexdigest()}", record.nifti_sha256
        )
