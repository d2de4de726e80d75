"""Small hand-made LUND-PROBE source trees: real files of a few voxels, written in milliseconds.

`write_patient` makes a sound patient; `edit` changes the uncompressed bytes of one file and
`patch` one field of its header, so that a test can damage exactly what it is about.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from lundprobe_zarr.conversion.arrays.patient import PatientResult, convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT, SourceFile, expected_files

Volume = npt.NDArray[Any]

NEW = "newAcq_00000000000000a1"
OLD = "oldAcq_00000000000000b2"
MRI, SCT = "MR_StorT2/image.nii.gz", "sCT/image.nii.gz"
#: Enough of a patient for most tests: every kind of file, on every grid, and the optional ones.
LIGHT = (
    MRI,
    "sCT/image_reg2MRI.nii.gz",
    SCT,
    "MR_StorT2/dose_interpolated.nii.gz",
    "sCT/dose_original.nii.gz",
    "MR_StorT2/mask_Rectum.nii.gz",
    "MR_StorT2/mask_Bladder.nii.gz",
    "MR_StorT2/mask_PenileBulb.nii.gz",
    "sCT/mask_PenileBulb.nii.gz",
    "sCT/mask_BODY.nii.gz",
    FIDUCIAL_TEXT,
)
PART_FOLDER = {"base": "basePart", "extended": "extendedPart"}

#: Voxels along (z, y, x), and ITK's way of writing an identity direction: RAS with -x and -y.
SHAPES = {"mri": (5, 8, 9), "sct": (4, 6, 7), "dose": (3, 4, 5)}
AFFINES = {
    "mri": np.array([[-0.5, 0, 0, 2], [0, -0.5, 0, 3], [0, 0, 2.5, -5], [0, 0, 0, 1.0]]),
    "sct": np.array([[-0.75, 0, 0, 2.5], [0, -0.75, 0, 3], [0, 0, 3, -5], [0, 0, 0, 1.0]]),
    "dose": np.array([[-1.25, 0, 0, 2], [0, -1.25, 0, 3], [0, 0, 5, -5], [0, 0, 0, 1.0]]),
}
FIDUCIALS = "-1.0,-1.5,0.0\n0.5,-2.0,2.5\n1.0,0.0,-2.5\n"
#: Offsets of NIfTI-1 header fields (nifti1.h).
FIELDS = {
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
    "srow_x": (280, "4f"),
    "srow_y": (296, "4f"),
    "magic": (344, "4s"),
}


def nifti(
    voxels: Volume,
    affine: npt.ArrayLike,
    *,
    order: str = "<",
    version: int = 1,
    slope: float | None = None,
    inter: float | None = None,
    extension: bytes = b"",
    trailer: bytes = b"",
    extra_dims: int = 0,
    codes: tuple[int, int] = (1, 1),
) -> bytes:
    """Uncompressed NIfTI file of `voxels` (z, y, x); `codes` are of qform and sform."""
    header: Any = {1: Nifti1Header, 2: Nifti2Header}[version](endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape[::-1] + (1,) * extra_dims)
    header.set_qform(affine, codes[0])
    header.set_sform(affine, codes[1])
    header["scl_slope"] = np.nan if slope is None else slope
    header["scl_inter"] = np.nan if inter is None else inter
    header["vox_offset"] = len(header.binaryblock) + 4 + len(extension)
    if version == 1:
        header["magic"] = b"n+1"
    extender = bytes([1 if extension else 0, 0, 0, 0])
    data = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()
    return bytes(header.binaryblock) + extender + extension + data + trailer


def write_nifti(path: Path, voxels: Volume, affine: npt.ArrayLike, **options: Any) -> None:
    """Write a `.nii.gz`; options as for `nifti`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(nifti(voxels, affine, **options), 1, mtime=0))


def uncompressed(path: Path) -> bytes:
    """All bytes of a `.nii.gz`, by the standard library."""
    return gzip.decompress(path.read_bytes())


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite a `.nii.gz` with its uncompressed bytes changed."""
    path.write_bytes(gzip.compress(change(uncompressed(path)), 1, mtime=0))


def patch(field: str, *values: Any) -> Callable[[Path], None]:
    """What sets one header field of a NIfTI-1 file."""
    offset, kind = FIELDS[field]

    def apply(path: Path) -> None:
        def change(data: bytes) -> bytes:
            there = bytearray(data)
            struct.pack_into(f"<{kind}", there, offset, *values)
            return bytes(there)

        edit(path, change)

    return apply


def voxels_of(record: SourceFile, seed: int) -> Volume:
    """Plausible voxels (z, y, x) of one file, of the types the dataset has."""
    rng, shape = np.random.default_rng(seed), SHAPES[record.grid]
    if record.kind == "mask":
        mask = np.zeros(shape, np.float32 if record.variable == "fiducial_mask" else np.uint8)
        mask[1:3, 1:3, 1:3] = 1
        mask[3, rng.integers(1, 3), rng.integers(1, 3)] = 1  # differs by file, and is connected
        return mask
    if record.labels.get("modality") == "T2w":
        return rng.integers(0, 2000, shape).astype(np.int16)
    if record.variable == "image":
        values = rng.uniform(-999.5, 1500, shape)
        return values if record.group == "mri" else values.astype(np.float32)
    if record.variable == "dose":
        return (rng.integers(0, 40000, shape) * 1.1e-3).astype(np.float32)
    return rng.uniform(0, 0.5, shape).astype(np.float32)


def write_patient(
    root: Path, patient_id: str = NEW, part: str = "base", only: tuple[str, ...] = ()
) -> Path:
    """Write a sound patient, whole or only some of its files; returns its folder."""
    folder = root / PART_FOLDER[part] / patient_id
    for path, record in expected_files(part).items():
        if only and path not in only:
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if record.kind == "text":
            target.write_text(FIDUCIALS)
        else:
            seed = zlib.crc32(f"{patient_id}/{path}".encode())
            write_nifti(target, voxels_of(record, seed), AFFINES[record.grid])
    return folder


def write_side_files(root: Path, part: str = "base", patients: tuple[str, ...] = (NEW,)) -> None:
    """Write the three side files of a part, saying what is so of patients made here."""
    suffix = f"{part}Part"
    columns = (
        "patient;sCTMatrixSizeOrig;sCTVoxelSizeOrig (mm);mriMatrixSize;mriVoxelSize (mm);"
        "doseMatrixSizeOrig;doseVoxelSizeOrig;doseMin (Gy);doseMax (Gy) "
    )
    cells = []
    for grid in ("sct", "mri", "dose"):
        z, y, x = SHAPES[grid]
        size = np.abs(np.diag(AFFINES[grid]))[:3].tolist()
        cells += [str((y, x, z)), str(tuple(size))]
    rows = [";".join([p, *cells, "0.0", "44.0"]) for p in patients]
    (root / f"patGeometryInformation_{suffix}.csv").write_text("\n".join([columns, *rows]) + "\n")
    (root / f"missingStructures_{suffix}.json").write_text(json.dumps({}))
    (root / f"StructuresMoreThan1ConComp_{suffix}.txt").write_text("")


def convert_tree(
    source: Path, dataset: Path, precision: Precision = "standard", follow_links: bool = False
) -> dict[str, PatientResult]:
    """Convert every patient of a tree in this process, without skipping any."""
    patients = take_inventory(source, follow_links).patients
    return {p.patient_id: convert_patient(p, dataset, precision) for p in patients}


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too, by relative path."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@dataclass(frozen=True)
class Workplace:
    """A source tree, the dataset it was converted into, and the patient a test is about."""

    source: Path
    dataset: Path
    patient_id: str = NEW
    part: str = "base"

    @property
    def folder(self) -> Path:
        return self.source / PART_FOLDER[self.part] / self.patient_id

    @property
    def store(self) -> Path:
        return self.dataset / "patients" / f"{self.patient_id}.zarr"

    def convert(
        self, precision: Precision = "standard", follow_links: bool = False
    ) -> dict[str, PatientResult]:
        return convert_tree(self.source, self.dataset, precision, follow_links)

    def convert_one(self, precision: Precision = "standard") -> PatientResult:
        """Convert the patient the test is about, alone."""
        patients = take_inventory(self.source).patients
        (patient,) = [p for p in patients if p.patient_id == self.patient_id]
        return convert_patient(patient, self.dataset, precision)
