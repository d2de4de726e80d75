"""The groups and arrays of one patient's store, as data.

`ARRAY_SPECS` is the contract: every volume a store can hold, its dimensions, units and filter.
`docs` and README tables, the converter, the validator and the reader all start from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lundprobe_zarr.vocabulary.names import (
    FOLDS,
    MODALITY_UNITS,
    OBSERVERS,
    SPATIAL_DIMS,
    STEPS,
    STRUCTURES,
)

#: Version of the dataset layout and tables; readers refuse a newer one.
SCHEMA_VERSION = 2


#: Conventions that every group's attributes name: those of https://cfconventions.org.
CONVENTIONS = "CF-1.11"
#: Description of a group's `affine`.
AFFINE_FRAME = "4x4, row after row: voxel (i, j, k) of the NIfTI file -> mm, RAS"


@dataclass(frozen=True)
class ArraySpec:
    """One array of volumes: `dims` are the label dimensions and then z, y, x.

    `units` is the unit of the values, None where it differs by label: see the coordinate `unit`.
    `present` names the boolean array that marks missing labels, for blocks that may have any.
    """

    group: str
    variable: str
    label_dims: tuple[str, ...]
    units: str | None
    long_name: str
    present: str | None = None

    @property
    def path(self) -> str:
        """Path of the array in the store, e.g. `mri/clinical/mask`."""
        return f"{self.group}/{self.variable}"

    @property
    def grid(self) -> str:
        """Voxel lattice the array lies on: `mri`, `sct` or `dose`."""
        return self.group.split("/")[0]

    @property
    def dims(self) -> tuple[str, ...]:
        """All dimensions, label dimensions first."""
        return self.label_dims + SPATIAL_DIMS

    @property
    def is_mask(self) -> bool:
        """Whether the array is boolean."""
        return self.variable.endswith("mask")


_SPECS = (
    ArraySpec("mri", "image", ("modality",), None, "image on the MRI grid"),
    ArraySpec("mri", "dose", (), "Gy", "planned dose, linearly interpolated to the MRI grid"),
    ArraySpec("mri/clinical", "mask", ("structure",), "1", "clinical delineation"),
    ArraySpec("mri/clinical", "fiducial_mask", (), "1", "3 mm spheres at the gold fiducials"),
    ArraySpec(
        "mri/nnunet", "mask", ("structure",), "1", "nnU-Net ensemble segmentation", "mask_present"
    ),
    ArraySpec(
        "mri/nnunet",
        "fold_mask",
        ("structure", "fold"),
        "1",
        "nnU-Net segmentation by fold",
        "fold_present",
    ),
    ArraySpec(
        "mri/nnunet",
        "uncertainty",
        ("structure",),
        "1",
        "voxel-wise standard deviation of the ten folds' SoftMax",
        "uncertainty_present",
    ),
    ArraySpec(
        "mri/observers",
        "mask",
        ("structure", "step", "observer"),
        "1",
        "segmentation edited by an observer; step 1 without, 2 with the uncertainty map",
        "present",
    ),
    ArraySpec("sct", "image", ("modality",), "HU", "synthetic CT"),
    ArraySpec("sct", "dose", (), "Gy", "planned dose on the synthetic CT grid"),
    ArraySpec("sct/clinical", "mask", ("structure",), "1", "clinical delineation"),
    ArraySpec("dose", "dose", (), "Gy", "planned dose on the planning grid"),
)

#: Every array of volumes, by path in the store.
ARRAY_SPECS: dict[str, ArraySpec] = {spec.path: spec for spec in _SPECS}

#: Arrays of segmentations, by path -> their `source` in the structures table.
SEGMENTATION_SOURCES: dict[str, str] = {
    "mri/clinical/mask": "clinical",
    "sct/clinical/mask": "clinical",
    "mri/nnunet/mask": "nnunet",
    "mri/nnunet/fold_mask": "nnunet_fold",
    "mri/observers/mask": "observer",
}

#: Descriptions of groups; a store has those for which the patient has files.
GROUP_TITLES: dict[str, str] = {
    "mri": "images and dose on the MRI grid",
    "mri/clinical": "clinical delineations and fiducials on the MRI grid",
    "mri/nnunet": "deep-learning segmentations, folds and uncertainty",
    "mri/observers": "segmentations redrawn by four oncologists, twice",
    "sct": "synthetic CT and dose on its own grid",
    "sct/clinical": "clinical delineations on the synthetic CT grid",
    "dose": "dose on the planning grid",
}

#: Canonical order of the labels of each label dimension.
LABEL_ORDER: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "modality": tuple(MODALITY_UNITS),
    "structure": STRUCTURES,
    "fold": FOLDS,
    "step": STEPS,
    "observer": OBSERVERS,
}

AXIS_ATTRIBUTES: dict[str, dict[str, str]] = {
    axis: {
        "units": "mm",
        "long_name": f"{axis} of voxel centres, DICOM patient frame (LPS), {towards}",
        "axis": axis.upper(),
    }
    | ({"positive": "up"} if axis == "z" else {})
    for axis, towards in (
        ("z", "towards the head"),
        ("y", "towards the back"),
        ("x", "towards the patient's left"),
    )
}
