"""Write the volumes of one patient's store: read each file, write its shard and verify it.

Metadata is written after the shards, because types and sources are known only when the files are
read. Every shard is read back and compared bit for bit. Finally one chunk of each shard is read
through zarr-python, as a user would, which detects metadata that misplaces voxels.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.conversion.arrays.plan import ArrayPlan
from lundprobe_zarr.conversion.arrays.shards import compare_shard, digest, put_shard
from lundprobe_zarr.conversion.arrays.values import Mask, Quantity, read_mask, read_quantity
from lundprobe_zarr.conversion.source.fiducials import read_fiducials
from lundprobe_zarr.conversion.source.grids import Grid, require_same
from lundprobe_zarr.conversion.source.inventory import PatientSource, SourceEntry
from lundprobe_zarr.conversion.source.nifti import (
    NiftiFile,
    NiftiReader,
    open_nifti,
    without_voxels,
)
from lundprobe_zarr.conversion.source.workspace import Workspace, aligned
from lundprobe_zarr.conversion.tables.measure import BODY, Body, Measurements
from lundprobe_zarr.dataset.content import voxels_sha256
from lundprobe_zarr.errors import VerificationError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.geometry.lattice import Grid as Lattice
from lundprobe_zarr.measures.intensity import Inside
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.measures.window import display_window, middle_slices
from lundprobe_zarr.schema.encoding import MASK_BLOSC, inner_chunk
from lundprobe_zarr.schema.precision import Precision, common_type, ladder_of
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.stores.metadata import shard_key
from lundprobe_zarr.stores.shard import Box, Compressed, ShardCodec, with_best_filter

Volume = npt.NDArray[Any]
#: Called with the bytes of each source file after it is stored.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Witness:
    """One chunk of a shard: the index of its voxels in the array, and their SHA-256."""

    index: tuple[int | slice, ...]
    sha256: bytes


@dataclass(frozen=True)
class WrittenArray:
    """An array whose shards are written and verified."""

    plan: ArrayPlan
    shape: tuple[int, ...]
    codec: ShardCodec
    records: tuple[SourceRecord, ...]
    witnesses: tuple[Witness, ...]


@dataclass
class Contents:
    """The contents of a store that have been written so far."""

    grids: dict[str, Grid] = field(default_factory=dict)
    arrays: list[WrittenArray] = field(default_factory=list)
    fiducials: tuple[FloatArray, SourceRecord] | None = None
    findings: list[str] = field(default_factory=list)
    synthetic: bool = False
    t2w_window: tuple[float, float] | None = None


class VolumeWriter:
    """Writes the volumes of one patient's store into `folder`.

    `precision` controls rounding; `progress` is called with each file's bytes; voxels are read into
    `workspace`, which must not be used elsewhere at the same time.
    """

    def __init__(
        self,
        folder: Path,
        patient: PatientSource,
        precision: Precision,
        progress: Progress,
        workspace: Workspace,
    ) -> None:
        self._folder = folder
        self._patient = patient
        self._precision = precision
        self._progress = progress
        self._workspace = workspace
        workspace.release()
        self._dose: dict[str, Volume] = {}
        self._bodies: dict[str, tuple[Inside, NiftiFile, int | float | None, int]] = {}
        self.measurements = Measurements(patient.patient_id, patient.part, patient.multi_component)
        self.contents = Contents()

    def write(self, plan: ArrayPlan) -> None:
        """Write one array of the plan. Raises `SourceError` for files that cannot be stored."""
        if plan.is_dose:  # the previous grid's dose is no longer needed
            self._dose = {}
            self._workspace.release()
        write = self._write_masks if plan.spec.is_mask else self._write_quantities
        array = write(plan)
        self.contents.arrays.append(array)
        self._release()

    def _release(self) -> None:
        """Release all voxels except the dose, which is needed to measure its grid's masks."""
        self._workspace.release(but=next(iter(self._dose.values()), None))

    def read_fiducials(self) -> None:
        """Read the fiducial positions, if the patient has them, before masks are measured."""
        for entry in self._patient.entries:
            if entry.record.kind == "text":
                where = self._where(entry)
                positions, record = read_fiducials(entry.file, where)
                if len(positions) != 3:
                    self._find(entry, f"{len(positions)} fiducials; 3 are usual")
                self.contents.fiducials = positions, record
                self.measurements.fiducials = positions
                self._progress(entry.bytes)

    def _where(self, entry: SourceEntry) -> str:
        return f"{self._patient.folder}/{entry.path}"

    def _find(self, entry: SourceEntry, finding: str) -> None:
        self.contents.findings.append(f"{entry.path}: {finding}")

    def _read(self, entry: SourceEntry, reader: NiftiReader) -> NiftiFile:
        file = reader.read(self._workspace, self._patient.strip_headers)
        self._accept(entry, file)
        return file

    def _accept(self, entry: SourceEntry, file: NiftiFile) -> None:
        """Require the grid of a file that was read, and note its anomalies."""
        self._require_grid(entry, file)
        for anomaly in file.anomalies:
            self._find(entry, anomaly)
        if file.intent not in ("none", "label" if entry.record.kind == "mask" else "none"):
            self._find(entry, f"intent code {file.intent}; its numbers were read unchanged")
        self.contents.synthetic |= file.is_synthetic

    def _require_grid(self, entry: SourceEntry, file: NiftiFile) -> None:
        """Require the geometry of the grid's first file, its image (or dose_original)."""
        x, y, z = file.shape
        here = Grid((z, y, x), file.affine, entry.path, file.unit)
        grid = self.contents.grids.setdefault(entry.record.grid, here)
        require_same(grid, here, self._where(entry))

    def _write_masks(self, plan: ArrayPlan) -> WrittenArray:
        codec = self._codec(plan, np.dtype(bool))  # the grid is known: its image came first
        stored, grid, planned = [], plan.spec.grid, self._planned()
        for entry in plan.entries:
            file, mask = self._read_mask(entry)
            self._accept(entry, file)
            if mask.voxels == 0:
                self._find(entry, "all-zero mask")
            box = _box(mask)
            _require_within(mask, box, self._where(entry))
            affine, dose = self.contents.grids[grid].affine, self._dose.get(grid)
            self.measurements.add(entry.record, mask.values, box, affine, dose, planned)
            facts = {"foreground": mask.foreground, "voxels": mask.voxels}
            stored.append(self._store(plan, codec, entry, file, mask.values, facts, box))
            self._release()
        return self._written(plan, codec, stored)

    def _planned(self) -> Lattice | None:
        """Return the planning dose grid, whose dose is written before masks; None without one."""
        grid = self.contents.grids.get("dose")
        return None if grid is None else Lattice(grid.affine, grid.shape)

    def _write_quantities(self, plan: ArrayPlan) -> WrittenArray:
        body = self._body(plan.spec.grid) if plan.spec.variable == "image" else None
        ready = self._quantities(plan)
        where = f"{self._patient.folder}: array {plan.spec.path}"
        dtype = common_type([q.rounded for _, q in ready], ladder_of(plan.spec.variable), where)
        volumes = [q.rounded.values for _, q in ready]
        codec, samples = with_best_filter(self._codec(plan, dtype), volumes)
        if plan.is_dose:
            self._dose = {plan.spec.grid: volumes[0].astype(dtype, copy=False)}
        if body is not None:
            self._measure_images(plan, ready, body)
        stored = []
        for entry, (file, quantity), sample in zip(plan.entries, ready, samples, strict=True):
            facts: dict[str, Any] = {
                "exact": quantity.rounded.exact,
                "max_abs_error": quantity.rounded.max_abs_error,
                "restores": quantity.restores,
                "range": quantity.range,
            }
            if file.is_scaled or not quantity.rounded.exact:
                facts["voxels_sha256"] = voxels_sha256(quantity.rounded.values, dtype)
            values = quantity.rounded.values
            stored.append(self._store(plan, codec, entry, file, values, facts, compressed=sample))
        return self._written(plan, codec, stored)

    def _body(self, grid: str) -> Body:
        """Read the BODY of a grid before its images, which are measured inside it.

        It is kept as bits, an eighth of its size, until masks are written.
        """
        for entry in self._patient.entries:
            record = entry.record
            if record.group == f"{grid}/clinical" and record.labels.get("structure") == BODY:
                file, mask = self._read_mask(entry)
                body = Body.of(mask.values, grid)
                if body.inside is not None:
                    facts = without_voxels(file), mask.foreground, mask.voxels
                    self._bodies[entry.path] = body.inside, *facts
                self._release()
                return body
        return Body.of(None, grid)

    def _read_mask(self, entry: SourceEntry) -> tuple[NiftiFile, Mask]:
        """Read a mask, unless it was read before and kept."""
        if entry.path in self._bodies:
            inside, file, foreground, voxels = self._bodies.pop(entry.path)
            values = inside.mask(self._workspace.take(prod(inside.shape)))
            return file, Mask(values, foreground, voxels, inside.box[0])
        with open_nifti(entry.file, self._where(entry)) as reader:
            file = reader.read(self._workspace, self._patient.strip_headers)
        return file, read_mask(file, self._where(entry))

    def _measure_images(
        self, plan: ArrayPlan, ready: list[tuple[NiftiFile, Quantity]], body: Body
    ) -> None:
        shape = self.contents.grids[plan.spec.grid].shape
        if body.inside is not None and body.inside.shape != shape:
            return  # the patient fails when masks are written, with a message about the grids
        for entry, (_, quantity) in zip(plan.entries, ready, strict=True):
            self.measurements.add_image(entry.record, quantity.rounded.values, body)

    def _quantities(self, plan: ArrayPlan) -> list[tuple[NiftiFile, Quantity]]:
        """Open each file of an array once, reserve memory for all of them, and read them."""
        with ExitStack() as opened:
            readers = [
                opened.enter_context(open_nifti(entry.file, self._where(entry)))
                for entry in plan.entries
            ]
            self._workspace.reserve(sum(aligned(r.layout.voxel_bytes) for r in readers))
            pairs = zip(plan.entries, readers, strict=True)
            return [self._quantity(plan, entry, reader) for entry, reader in pairs]

    def _quantity(
        self, plan: ArrayPlan, entry: SourceEntry, reader: NiftiReader
    ) -> tuple[NiftiFile, Quantity]:
        file = self._read(entry, reader)
        modality = entry.record.labels.get("modality")
        quantity = read_quantity(
            file,
            self._precision,
            plan.spec.variable,
            str(modality) if modality else None,
            self._where(entry),
        )
        if modality == "T2w":
            values = quantity.rounded.values
            self.contents.t2w_window = display_window(values[middle_slices(values.shape)])
        if quantity.nonfinite:
            self._find(entry, f"{quantity.nonfinite} voxels are inf or NaN")
        return without_voxels(file), quantity

    def _codec(self, plan: ArrayPlan, dtype: np.dtype[Any]) -> ShardCodec:
        shape = self.contents.grids[plan.spec.grid].shape
        return ShardCodec(shape, inner_chunk(shape), dtype, MASK_BLOSC)

    def _written(self, plan: ArrayPlan, codec: ShardCodec, stored: list[_Stored]) -> WrittenArray:
        blocks = tuple(len(plan.labels[d]) for d in plan.spec.label_dims)
        records = tuple(s.record for s in stored)
        witnesses = tuple(s.witness for s in stored if s.witness is not None)
        return WrittenArray(plan, blocks + codec.shape, codec, records, witnesses)

    def _store(
        self,
        plan: ArrayPlan,
        codec: ShardCodec,
        entry: SourceEntry,
        file: NiftiFile,
        volume: Volume,
        facts: dict[str, Any],
        within: Box | None = None,
        compressed: Compressed | None = None,
    ) -> _Stored:
        """Write and verify the shard of one file; `facts` are the record's fields of its values.

        `within` is a box around all foreground voxels of a mask, None for an all-zero mask.
        `compressed` are chunks that were already compressed to choose the filter.
        """
        index = plan.index(entry.record.labels)
        key = shard_key(plan.spec, index)
        size, sha256 = put_shard(self._folder / key, codec, volume, within, compressed)
        box = compare_shard(self._folder / key, codec, volume, within, key)
        self._progress(entry.bytes)
        witness = None if box is None else Witness((*index, *box), digest(volume[box], codec.dtype))
        return _Stored(self._record(entry, file, size, sha256, facts), witness)

    def _record(
        self,
        entry: SourceEntry,
        file: NiftiFile,
        size: int,
        sha256: str | None,
        facts: dict[str, Any],
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
            stripped=self._patient.strip_headers,
            dtype=file.dtype.str,
            stored_bytes=size,
            stored_sha256=sha256,
            **facts,
        )


def _box(mask: Mask) -> Box | None:
    """Return the bounding box of a mask, from the slices that have voxels."""
    box = bounding_box(mask.values[mask.slices])
    if box is None:
        return None
    z, y, x = box
    return slice(z.start + mask.slices.start, z.stop + mask.slices.start), y, x


def _require_within(mask: Mask, box: Box | None, where: str) -> None:
    """Require that all voxels of a mask are in `box`.

    Voxels outside are neither written nor compared, so their number is checked here.
    """
    inside = 0 if box is None else int(np.count_nonzero(mask.values[box]))
    if inside != mask.voxels:
        raise VerificationError(
            f"{inside} voxels in the box {box} of {mask.voxels}",
            where=where,
            expected="all voxels in the box",
            remedy="please report this, with the version of numpy",
        )


@dataclass(frozen=True)
class _Stored:
    record: SourceRecord
    witness: Witness | None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def require_witnesses(arrays: list[WrittenArray], group: Any, where: str) -> None:
    """Read one chunk of every shard through zarr-python and compare it.

    Raises `VerificationError` if a chunk differs, which means that the metadata misplaces voxels.
    """
    for array in arrays:
        stored = group[array.plan.spec.path]
        for witness in array.witnesses:
            if digest(stored[witness.index], array.codec.dtype) != witness.sha256:
                raise VerificationError(
                    f"zarr reads other voxels at {array.plan.spec.path}{witness.index} "
                    "than were written",
                    where=where,
                    remedy="please report this, with the versions of zarr and numcodecs",
                )
