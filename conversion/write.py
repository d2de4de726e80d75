"""Write one patient's store: read each file, place its values, verify, then the metadata.

Shards come first and metadata last, since types and sources are known only once the files are
read. Every shard is read back and compared bit for bit; afterwards one chunk of each is read
through zarr-python, as a user would, so that metadata which misplaces voxels cannot pass.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import SourceError, VerificationError
from lundprobe_zarr.schema.encoding import blosc_settings, inner_chunk
from lundprobe_zarr.schema.precision import Precision, common_type, ladder_of
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.store.metadata import shard_key
from lundprobe_zarr.store.shard import Box, ShardCodec
from lundprobe_zarr.vocabulary.geometry import SAME_GRID_MM, FloatArray, largest_shift

from .fiducials import read_fiducials
from .inventory import PatientSource, SourceEntry
from .nifti import NiftiFile, read_nifti, without_voxels
from .plan import ArrayPlan
from .values import Quantity, read_mask, read_quantity

Volume = npt.NDArray[Any]
#: Called with the bytes of each source file once it is stored.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Grid:
    """A voxel lattice: shape (z, y, x), affine voxel (i, j, k) -> mm RAS, the file that sets it."""

    shape: tuple[int, int, int]
    affine: FloatArray
    path: str


@dataclass(frozen=True)
class Witness:
    """One chunk of a shard: where its voxels are in the array, and their SHA-256."""

    index: tuple[int | slice, ...]
    sha256: bytes


@dataclass(frozen=True)
class WrittenArray:
    """An array whose shards are written and verified."""

    plan: ArrayPlan
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    records: tuple[SourceRecord, ...]
    witnesses: tuple[Witness, ...]


@dataclass
class Contents:
    """What has been written of a store so far."""

    grids: dict[str, Grid] = field(default_factory=dict)
    arrays: list[WrittenArray] = field(default_factory=list)
    fiducials: tuple[FloatArray, SourceRecord] | None = None
    findings: list[str] = field(default_factory=list)
    synthetic: bool = False


class VolumeWriter:
    """Writes the volumes of one patient's store into `folder`.

    `precision` decides what may be rounded; `progress` hears of each file's bytes.
    """

    def __init__(
        self, folder: Path, patient: PatientSource, precision: Precision, progress: Progress
    ) -> None:
        self._folder = folder
        self._patient = patient
        self._precision = precision
        self._progress = progress
        self.contents = Contents()

    def write(self, plan: ArrayPlan) -> None:
        """Write one array of the plan; raises `SourceError` for files that cannot be stored."""
        write = self._write_masks if plan.spec.is_mask else self._write_quantities
        array = write(plan)
        self.contents.arrays.append(array)

    def read_fiducials(self) -> None:
        """Read the fiducial positions, if the patient has them."""
        for entry in self._patient.entries:
            if entry.record.kind == "text":
                where = self._where(entry)
                positions, record = read_fiducials(entry.file, where)
                if len(positions) != 3:
                    self._find(entry, f"{len(positions)} fiducials; 3 are usual")
                self.contents.fiducials = positions, record
                self._progress(entry.bytes)

    def _where(self, entry: SourceEntry) -> str:
        return f"{self._patient.folder}/{entry.path}"

    def _find(self, entry: SourceEntry, finding: str) -> None:
        self.contents.findings.append(f"{entry.path}: {finding}")

    def _read(self, entry: SourceEntry) -> NiftiFile:
        file = read_nifti(entry.file, self._where(entry))
        self._place(entry, file)
        for oddity in file.oddities:
            self._find(entry, oddity)
        self.contents.synthetic |= file.description.upper().startswith("SYNTHETIC")
        return file

    def _place(self, entry: SourceEntry, file: NiftiFile) -> None:
        """Require the geometry of the grid's first file, its image (or dose_original)."""
        z, y, x = file.raw.shape
        here = Grid((z, y, x), file.affine, entry.path)
        grid = self.contents.grids.setdefault(entry.record.grid, here)
        shift = (
            largest_shift(grid.affine, here.affine, (x, y, z))
            if grid.shape == here.shape
            else np.inf
        )
        if shift > SAME_GRID_MM:
            by = "" if np.isinf(shift) else f"; voxels lie up to {shift:.4g} mm apart"
            raise SourceError(
                f"{self._where(entry)}: {here.shape} voxels (z, y, x) with affine "
                f"{here.affine.tolist()}; expected the geometry of {grid.path}, {grid.shape} with "
                f"affine {grid.affine.tolist()}{by}; fetch the patient again"
            )

    def _write_masks(self, plan: ArrayPlan) -> WrittenArray:
        dtype = np.dtype(bool)
        records: list[SourceRecord] = []
        witnesses: list[Witness] = []
        for entry in plan.entries:
            file = self._read(entry)
            mask = read_mask(file, self._where(entry))
            if mask.voxels == 0:
                self._find(entry, "all-zero mask")
            place = plan.index(entry.record.labels)
            stored = self._write_shard(plan, place, mask.values, dtype, entry)
            values = {"foreground": mask.foreground, "voxels": mask.voxels}
            records.append(self._record(entry, file, stored, values))
            witnesses += stored.witnesses
        return self._written(plan, dtype, records, witnesses)

    def _write_quantities(self, plan: ArrayPlan) -> WrittenArray:
        ready = [self._quantity(plan, entry) for entry in plan.entries]
        where = f"{self._patient.folder}: array {plan.spec.path}"
        dtype = common_type([q.rounded for _, q in ready], ladder_of(plan.spec.variable), where)
        records: list[SourceRecord] = []
        witnesses: list[Witness] = []
        for entry, (file, quantity) in zip(plan.entries, ready, strict=True):
            place = plan.index(entry.record.labels)
            stored = self._write_shard(plan, place, quantity.rounded.values, dtype, entry)
            values = {
                "exact": quantity.rounded.exact,
                "max_abs_error": quantity.rounded.max_abs_error,
                "restores": quantity.restores,
                "range": quantity.range,
            }
            records.append(self._record(entry, file, stored, values))
            witnesses += stored.witnesses
        return self._written(plan, dtype, records, witnesses)

    def _quantity(self, plan: ArrayPlan, entry: SourceEntry) -> tuple[NiftiFile, Quantity]:
        file = self._read(entry)
        modality = entry.record.labels.get("modality")
        quantity = read_quantity(
            file,
            self._precision,
            plan.spec.variable,
            str(modality) if modality else None,
            self._where(entry),
        )
        if quantity.nonfinite:
            self._find(entry, f"{quantity.nonfinite} voxels are inf or NaN")
        return without_voxels(file), quantity

    def _written(
        self,
        plan: ArrayPlan,
        dtype: np.dtype[Any],
        records: list[SourceRecord],
        witnesses: list[Witness],
    ) -> WrittenArray:
        blocks = tuple(len(plan.labels[d]) for d in plan.spec.label_dims)
        shape = blocks + self.contents.grids[plan.spec.group.split("/")[0]].shape
        return WrittenArray(plan, shape, dtype, tuple(records), tuple(witnesses))

    def _record(
        self, entry: SourceEntry, file: NiftiFile, stored: _Stored, values: dict[str, Any]
    ) -> SourceRecord:
        return SourceRecord(
            labels=entry.record.labels,
            path=self._where(entry),
            bytes=file.bytes,
            sha256=file.sha256,
            nifti_sha256=file.nifti_sha256,
            header=_base64(file.header),
            extensions=_base64(file.extensions),
            trailer=_base64(file.trailer),
            dtype=file.dtype.str,
            stored_bytes=stored.bytes,
            stored_sha256=stored.sha256,
            **values,
        )

    def _write_shard(
        self,
        plan: ArrayPlan,
        place: tuple[int, ...],
        volume: Volume,
        dtype: np.dtype[Any],
        entry: SourceEntry,
    ) -> _Stored:
        shape = self.contents.grids[entry.record.grid].shape
        codec = ShardCodec(shape, inner_chunk(shape), dtype, blosc_settings(plan.spec.variable))
        key = shard_key(plan.spec, place)
        stored = _put(self._folder / key, codec, volume)
        box = _compare(self._folder / key, codec, volume, stored.bytes, key)
        self._progress(entry.bytes)
        witness = () if box is None else (Witness((*place, *box), _digest(volume[box], dtype)),)
        return _Stored(stored.bytes, stored.sha256, witness)


@dataclass(frozen=True)
class _Stored:
    """Size and hash of a shard; 0 and None if all its chunks are empty."""

    bytes: int
    sha256: str | None
    witnesses: tuple[Witness, ...] = ()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _digest(values: Volume, dtype: np.dtype[Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values, dtype=dtype).data).digest()


def _put(path: Path, codec: ShardCodec, volume: Volume) -> _Stored:
    """Write a shard to disk, down to the device: a store that appears must survive a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in codec.encode(volume):
            file.write(part)
            sha256.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    if size == 0:
        path.unlink()
        return _Stored(0, None)
    return _Stored(size, sha256.hexdigest())


def _compare(path: Path, codec: ShardCodec, volume: Volume, size: int, key: str) -> Box | None:
    """Compare a shard on disk with its volume bit for bit; the box of its first full chunk."""
    if size == 0:
        _compare_chunks(codec, volume, lambda offset, length: b"", 0, key)
        return None
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return _compare_chunks(codec, volume, read, os.fstat(file.fileno()).st_size, key)


def _compare_chunks(
    codec: ShardCodec, volume: Volume, read: Callable[[int, int], bytes], size: int, key: str
) -> Box | None:
    bits = f"u{codec.dtype.itemsize}"
    first = None
    for box, chunk in codec.decode(read, size, key):
        expected = np.ascontiguousarray(volume[box], dtype=codec.dtype).view(bits)
        same = not expected.any() if chunk is None else np.array_equal(chunk.view(bits), expected)
        if not same:
            raise VerificationError(
                f"{key}: voxels {box} read back differ from what was written; expected the same "
                "bits; check the disk, then convert this patient again"
            )
        first = box if first is None and chunk is not None else first
    return first


def require_witnesses(arrays: list[WrittenArray], group: Any, where: str) -> None:
    """Read one chunk of every shard through zarr-python and compare it.

    Raises `VerificationError` if a chunk differs: then the metadata misplaces voxels.
    """
    for array in arrays:
        stored = group[array.plan.spec.path]
        for witness in array.witnesses:
            if _digest(stored[witness.index], array.dtype) != witness.sha256:
                raise VerificationError(
                    f"{where}: zarr reads other voxels at {array.plan.spec.path}{witness.index} "
                    "than were written; please report this, with the versions of zarr and numcodecs"
                )
