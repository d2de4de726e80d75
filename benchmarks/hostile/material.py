"""What cases are spoilt from: a tiny phantom and its conversion, a name planted in its texts."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.hostile.changes import NAME
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.schema.header import parse_header

#: A header of each writer: an image, a map of nibabel's, a mask of yet another tool.
_FILES = (
    "MR_StorT2/image.nii.gz",
    "MR_StorT2/nnUNetOutput/mask_Rectum_nnUNet_uncertaintyMap.nii.gz",
    "MR_StorT2/mask_MRI_T2_coords_fiducials.nii.gz",
)


@dataclass(frozen=True)
class Material:
    """A source tree and its conversion, read only, and a folder to work in."""

    source: Path
    dataset: Path
    scratch: Path

    @cached_property
    def niftis(self) -> list[bytes]:
        """Uncompressed NIfTI files, with a name in every free text of their headers."""
        (patient,) = (self.source / "extendedPart").iterdir()
        return [_with_name(gzip.decompress((patient / f).read_bytes())) for f in _FILES]

    @cached_property
    def side_files(self) -> dict[str, str]:
        """Text of every side file of the base part, by name."""
        return {p.name: p.read_text() for p in sorted(self.source.glob("*_basePart.*"))}

    @cached_property
    def fiducials(self) -> bytes:
        """A fiducial text."""
        return next(self.source.rglob("*_fiducials.txt")).read_bytes()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The dataset's manifest."""
        found: dict[str, Any] = json.loads((self.dataset / "lundprobe.json").read_text())
        return found

    @cached_property
    def patient_id(self) -> str:
        """The extended patient: every kind of array."""
        return next((self.source / "extendedPart").iterdir()).name

    @cached_property
    def store(self) -> dict[str, Any]:
        """Root metadata of the extended patient's store."""
        text = (self.dataset / f"patients/{self.patient_id}.zarr/zarr.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found

    def copied(self, name: str) -> Path:
        """A copy of the dataset in the scratch folder, made the first time it is asked for."""
        place = self.scratch / name
        if not place.exists():
            shutil.copytree(self.dataset, place)
        return place


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write a source tree of two base patients and an extended one, and convert it."""
    source = write_phantom(folder / "source", patients=2, extended=1)
    for patient in take_inventory(source).patients:
        result = convert_patient(patient, folder / "dataset", "standard")
        if result.status != "converted":
            raise RuntimeError(result.error)
    finalise(folder / "dataset")
    return source, folder / "dataset"


def _with_name(data: bytes) -> bytes:
    header: Any = parse_header(data[:348])
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        header[field] = NAME.encode()[: header[field].dtype.itemsize]
    return bytes(header.binaryblock) + data[348:]
