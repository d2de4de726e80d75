"""A source tree of one base patient whose grids lie as no phantom's do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise

#: Files of each grid below a patient's folder.
_FILES = {
    "mri": ("MR_StorT2/*.nii.gz", "sCT/image_reg2MRI.nii.gz"),
    "sct": ("sCT/image.nii.gz", "sCT/dose_interpolated.nii.gz", "sCT/mask_*"),
    "dose": ("sCT/dose_original.nii.gz",),
}


def moved_dataset(
    phantom: Path, home: Path, matrices: Mapping[str, np.ndarray], empty: str | None = None
) -> Path:
    """Convert a base patient whose affines (RAS) are multiplied by a matrix (3, 3) per grid.

    Masks of the structure `empty` have no voxel.
    """
    patient = next(p for p in sorted((phantom / "basePart").iterdir()) if p.is_dir())
    folder = home / "source" / "basePart" / patient.name
    shutil.copytree(patient, folder)
    for grid, matrix in matrices.items():
        for file in (f for pattern in _FILES[grid] for f in folder.glob(pattern)):
            image = nib.Nifti1Image.from_filename(file)
            affine = image.affine.copy()
            affine[:3] = matrix @ affine[:3]
            moved = nib.Nifti1Image(image.dataobj.get_unscaled(), None, image.header)
            moved.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
            moved.set_sform(affine, 1)
            moved.header["qform_code"] = 0
            moved.to_filename(file)
    for file in folder.glob(f"*/mask_{empty}.nii.gz"):
        image = nib.Nifti1Image.from_filename(file)
        nothing = np.zeros(image.shape, image.get_data_dtype())
        nib.Nifti1Image(nothing, None, image.header).to_filename(file)
    for found in take_inventory(home / "source").patients:
        result = convert_patient(found, home / "dataset", "standard")
        assert result.status == "converted", result.error
    finalise(home / "dataset")
    return home / "dataset"
