"""Source file names <-> typed records: which file fills which slice of which array.

`parse_path` turns a path below a patient's folder into a `SourceFile`, which names the group,
variable and labels that the file fills. `format_path` is the exact inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STEPS, STRUCTURES, TARGETS

Label = str | int

#: Folder of each part in the source tree.
PART_FOLDERS = {"base": "basePart", "extended": "extendedPart"}
#: The text file of fiducial centres: one `x,y,z` per line, mm, DICOM (LPS).
FIDUCIAL_TEXT = "MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt"


@dataclass(frozen=True)
class SourceFile:
    """One file of a patient, identified by what it fills.

    `group` and `variable` name an array of the store. `labels` names the slice (dimension -> label,
    in the order of the array's dimensions). `grid` names the voxel lattice of the file.
    """

    group: str
    variable: str
    labels: dict[str, Label] = field(default_factory=dict)

    @property
    def grid(self) -> str:
        """Voxel lattice: `mri`, `sct` or `dose`."""
        return self.group.split("/")[0]

    @property
    def kind(self) -> str:
        """`image`, `dose`, `uncertainty`, `mask` or `text`; it selects the rules for values."""
        if self.variable == "fiducial_position":
            return "text"
        return "mask" if self.variable.endswith("mask") else self.variable

    @property
    def is_extended(self) -> bool:
        """Whether only extended patients have this file."""
        return self.group in ("mri/nnunet", "mri/observers")

    def __hash__(self) -> int:
        return hash((self.group, self.variable, tuple(self.labels.items())))


_FIXED: dict[str, SourceFile] = {
    "MR_StorT2/image.nii.gz": SourceFile("mri", "image", {"modality": "T2w"}),
    "sCT/image_reg2MRI.nii.gz": SourceFile("mri", "image", {"modality": "sCT"}),
    "MR_StorT2/dose_interpolated.nii.gz": SourceFile("mri", "dose"),
    "MR_StorT2/mask_MRI_T2_coords_fiducials.nii.gz": SourceFile("mri/clinical", "fiducial_mask"),
    FIDUCIAL_TEXT: SourceFile("mri/clinical", "fiducial_position"),
    "sCT/image.nii.gz": SourceFile("sct", "image", {"modality": "sCT"}),
    "sCT/dose_interpolated.nii.gz": SourceFile("sct", "dose"),
    "sCT/dose_original.nii.gz": SourceFile("dose", "dose"),
}


def _expected(extended: bool) -> Iterator[tuple[str, SourceFile]]:
    yield from _FIXED.items()
    for structure in STRUCTURES:
        labels: dict[str, Label] = {"structure": structure}
        yield f"MR_StorT2/mask_{structure}.nii.gz", SourceFile("mri/clinical", "mask", labels)
        yield f"sCT/mask_{structure}.nii.gz", SourceFile("sct/clinical", "mask", labels)
    if extended:
        for target in TARGETS:
            yield from _expected_of_target(target)


def _expected_of_target(target: str) -> Iterator[tuple[str, SourceFile]]:
    nnunet, observers = "MR_StorT2/nnUNetOutput", "MR_StorT2/observerData"
    stem = f"mask_{target}_nnUNet"
    yield f"{nnunet}/{stem}.nii.gz", SourceFile("mri/nnunet", "mask", {"structure": target})
    yield (
        f"{nnunet}/{stem}_uncertaintyMap.nii.gz",
        SourceFile("mri/nnunet", "uncertainty", {"structure": target}),
    )
    for fold in FOLDS:
        labels: dict[str, Label] = {"structure": target, "fold": fold}
        yield (
            f"{nnunet}/folds/{stem}_fold_{fold}.nii.gz",
            SourceFile("mri/nnunet", "fold_mask", labels),
        )
    for step in STEPS:
        for observer in OBSERVERS:
            labels = {"structure": target, "step": step, "observer": observer}
            yield (
                f"{observers}/mask_{target}_step{step}_{observer}.nii.gz",
                SourceFile("mri/observers", "mask", labels),
            )


#: Every file a patient can have: path below the patient's folder -> record.
KNOWN_FILES: dict[str, SourceFile] = dict(_expected(extended=True))
_PATHS: dict[SourceFile, str] = {record: path for path, record in KNOWN_FILES.items()}


def expected_files(part: str) -> dict[str, SourceFile]:
    """Return the files of a complete patient of `part` (`base` or `extended`), by path."""
    return {p: f for p, f in KNOWN_FILES.items() if part == "extended" or not f.is_extended}


def parse_path(path: str) -> SourceFile | None:
    """Return the record of a `/`-separated path below a patient's folder; None if unknown."""
    return KNOWN_FILES.get(path)


def format_path(record: SourceFile) -> str:
    """Return the path of a record below a patient's folder; the inverse of `parse_path`."""
    return _PATHS[record]


_MASK_NAME = re.compile(r"(?:mask_)?(?P<structure>.+?)(?:\.nii(?:\.gz)?)?")


def structure_of_name(name: str) -> str | None:
    """Return the structure named by `mask_Bladder.nii.gz` or a bare `Bladder`; else None."""
    match = _MASK_NAME.fullmatch(name.strip())
    label = match.group("structure") if match else ""
    return label if label in STRUCTURES else None
