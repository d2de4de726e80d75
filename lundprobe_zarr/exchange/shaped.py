"""Write one patient's NIfTI files: a choice of them, cropped and resampled, in a layout.

Files whose voxels are as stored hold the bytes of the source. Others have the exact affine of
their voxels as sform.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.exchange import bids
from lundprobe_zarr.exchange.choice import Choice
from lundprobe_zarr.exchange.nifti import gzipped, outcome, source_path, write_nifti
from lundprobe_zarr.geometry.affine import LONGEST_AXIS
from lundprobe_zarr.geometry.lattice import Move, resample_volume, resampled_type
from lundprobe_zarr.geometry.nifti_image import nifti_image
from lundprobe_zarr.patches.frame import Bounds, Box, Frame
from lundprobe_zarr.patches.lattice import stored_grid
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.folders import drafted
from lundprobe_zarr.storage.local import named, write_local
from lundprobe_zarr.stores.metadata import VolumeArray
from lundprobe_zarr.stores.reader import Part, StoreReader
from lundprobe_zarr.vocabulary.files import PART_FOLDERS, SourceFile, parse_path

Layout = Literal["source", "bids"]
#: Most voxels of a volume, 20 times a full-size MRI.
_MOST_VOXELS = 2**31


@dataclass(frozen=True)
class Shape:
    """What is exported, and how: the files, their voxels, and their names.

    `source` names files as the source tree does, `bids` as `exchange.bids` says. Raises
    `UsageError` for another layout.
    """

    choice: Choice = field(default_factory=Choice)
    frame: Frame = field(default_factory=Frame)
    layout: Layout = "source"

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UsageError(f"layout {self.layout!r}", expected="source or bids")

    @property
    def is_plain(self) -> bool:
        """Whether every file is written as it was in the source."""
        return self.choice.is_everything and self.frame.is_stored and self.layout == "source"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        frame = asdict(self.frame)
        if frame["spacing_mm"] is not None:
            frame["spacing_mm"] = list(frame["spacing_mm"])
        chosen = {k: v and list(v) for k, v in asdict(self.choice).items()}
        return {"layout": self.layout} | frame | chosen


@dataclass(frozen=True)
class Written:
    """What was written of a patient.

    Attributes
    ----------
    files : dict of str to int
        Size of each file, by path relative to the output folder.
    homes : list of str
        The folders that hold all of them.
    missing : list of str
        Files, by their path in the source tree, that were wanted and that the patient lacks.
    empty : list of str
        Masks, by that path, that have no voxel in the box, and that were not written.
    rounded : list of str
        Files of values that the conversion rounded.
    stripped : list of str
        Files that have every voxel, but not the source header's free text.
    """

    files: dict[str, int] = field(default_factory=dict)
    homes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)


class StoppedError(Exception):
    """The export was asked to stop."""


class PatientFiles:
    """The files of one patient in a shape; `bounds` are those of `Frame.bounds`."""

    def __init__(self, reader: StoreReader, shape: Shape, bounds: Mapping[str, Bounds]) -> None:
        self._reader = reader
        self._shape = shape
        self._boxes: dict[str, Box] = {}
        self._bounds = bounds
        self._store = reader.metadata
        self.part = str(reader.metadata.attributes["part"])

    def write(self, draft: Path, out: Path, stop: threading.Event) -> Written:
        """Write all files below `draft`; messages call them by what they will be below `out`.

        Raises `MissingStructureError` if there is no structure to crop to, `UsageError` for voxels
        that NIfTI cannot hold, `DamagedStoreError`, `OSError` if a file cannot be written, and
        `StoppedError` once `stop` is set.
        """
        written = Written()
        there = set()
        for array, record in self._store.records:
            if stop.is_set():
                raise StoppedError
            path = source_path(self._store, record)
            file = parse_path("/".join(path.parts[2:]))
            assert file is not None  # source_path has refused others
            there.add(file)
            if not self._shape.choice.holds(file):
                continue
            if array is None:
                self._write_text(file, record, draft, out, written)
            else:
                self._write_volume(file, array, record, draft, out, written)
        home = f"{PART_FOLDERS[self.part]}/{self._store.patient_id}/"
        expected = self._shape.choice.expected(self.part)
        written.missing.extend(home + p for p, file in expected.items() if file not in there)
        return written

    def _write_volume(
        self,
        file: SourceFile,
        array: VolumeArray,
        record: SourceRecord,
        draft: Path,
        out: Path,
        written: Written,
    ) -> None:
        as_stored = self._shape.frame.is_stored
        if as_stored and file.kind == "mask" and not record.voxels and not self._shape.is_plain:
            written.empty.append(record.path)
            return
        values = None if as_stored else self._values(array, record)
        if values is not None and file.kind == "mask" and not values.any():
            written.empty.append(record.path)
            return
        path = self._path(file, record, written)
        target = _made(draft, out, path)
        if values is None:
            write_nifti(self._reader, array, record, target, out / path)
        else:
            image = nifti_image(values, self._box(file.grid).grid.affine)
            with gzipped(target, out / path) as stream:
                image.to_stream(stream)
        if outcome(record) == "rounded":
            written.rounded.append(str(path))
        elif values is None and record.stripped:
            written.stripped.append(str(path))
        written.files[str(path)] = target.stat().st_size
        if self._shape.layout == "bids":
            self._write_sidecar(file, record, path, draft, out, written)

    def _values(self, array: VolumeArray, record: SourceRecord) -> npt.NDArray[Any]:
        """Read a volume on its box: linear for values, masks True from ½ of the linear value."""
        path, box = array.spec.path, self._box(array.spec.grid)
        index = self._store.index(array, record)
        if self._shape.frame.spacing_mm is None:
            return self._reader.read_parts([Part(path, index, box.slices)])[0]
        move = Move.between(stored_grid(self._store, array.spec.grid), box.grid)
        part, window = move.window()
        volume = self._reader.read_parts([Part(path, index, part)])[0]
        return resample_volume(volume, window, 1, resampled_type(volume.dtype))

    def _box(self, grid: str) -> Box:
        if grid not in self._boxes:
            box = self._shape.frame.box(self._store, grid, self._bounds)
            if max(box.size) > LONGEST_AXIS or prod(box.size) > _MOST_VOXELS:
                raise UsageError(
                    f"a volume of {box.size} voxels (z, y, x) on the {grid} grid",
                    expected=f"at most {LONGEST_AXIS} along an axis, which NIfTI-1 can say, and "
                    "2**31 in all",
                    remedy="check that the spacing is in mm, choose a larger one, or crop",
                )
            self._boxes[grid] = box
        return self._boxes[grid]

    def _path(self, file: SourceFile, record: SourceRecord, written: Written) -> PurePosixPath:
        if self._shape.layout == "bids":
            home = bids.home(file, self._store.patient_id, self._shape.frame)
            path = bids.path(file, self._store.patient_id, self._shape.frame)
        else:
            path = source_path(self._store, record)
            home = PurePosixPath(*path.parts[:2])
        if str(home) not in written.homes:
            written.homes.append(str(home))
        return path

    def _write_text(
        self, file: SourceFile, record: SourceRecord, draft: Path, out: Path, written: Written
    ) -> None:
        """Write the text of fiducial positions, mm, LPS, which no shape changes."""
        if self._shape.layout == "bids":  # in sidecars of the T2w image and of the mask
            return
        path = self._path(file, record, written)
        target = _made(draft, out, path)
        with named(out / path):
            target.write_bytes((record.text or "").encode(record.encoding))
        written.files[str(path)] = target.stat().st_size

    def _write_sidecar(
        self,
        file: SourceFile,
        record: SourceRecord,
        path: PurePosixPath,
        draft: Path,
        out: Path,
        written: Written,
    ) -> None:
        fields = bids.sidecar(file, record, self._store, self._shape.frame)
        side = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        with named(out / side):
            (draft / side).write_bytes(bids.json_bytes(fields))
        written.files[str(side)] = (draft / side).stat().st_size


def write_patient(
    reader: StoreReader,
    shape: Shape,
    bounds: Mapping[str, Bounds],
    out: Path,
    journal: Path,
    stop: threading.Event,
) -> Written:
    """Write a patient's files below `out`, where its folders appear once they are whole.

    `journal` is a file that says what was written, which is there before the folders are. Raises
    as `PatientFiles.write` does, and `UsageError` if one of the folders is there.
    """
    with drafted(out / reader.metadata.patient_id) as draft:
        written = PatientFiles(reader, shape, bounds).write(draft, out, stop)
        for home in written.homes:
            if (out / home).exists():
                raise UsageError(
                    f"{out / home} exists already, and no export of this kind wrote it",
                    expected="a new folder",
                    remedy="choose another output folder or remove it",
                )
        write_local(journal, bids.json_bytes(asdict(written)))
        with named(out):
            for home in written.homes:
                (out / home).parent.mkdir(parents=True, exist_ok=True)
                (draft / home).rename(out / home)
    return written


def homes_of(patient_id: str) -> set[str]:
    """Return every folder, relative to the output folder, that may be a patient's."""
    subject = bids.subject(patient_id)
    sources = {f"{folder}/{patient_id}" for folder in PART_FOLDERS.values()}
    return sources | {subject, str(bids.DERIVATIVES / subject)}


def _made(draft: Path, out: Path, path: PurePosixPath) -> Path:
    """Return the place of a file in the draft, its folder made."""
    with named(out / path):
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
    return draft / path
