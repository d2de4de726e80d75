"""A source tree of one extended patient, all of whose grids lie askew, each in its own way."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

#: Files of each grid below a patient's folder, and by how much it is turned about x, y, z.
_GRIDS = {
    "mri": (("MR_StorT2/**/*.nii.gz", "sCT/image_reg2MRI.nii.gz"), (0.2, -0.1, 0.05)),
    "sct": (("sCT/image.nii.gz", "sCT/dose_interpolated.nii.gz", "sCT/mask_*"), (-0.1, 0.2, 0.3)),
    "dose": (("sCT/dose_original.nii.gz",), (0.05, 0.15, -0.2)),
}


def write_oblique(phantom: Path, home: Path) -> Path:
    """Write the tree at `home`, from the extended patient of a phantom; return it."""
    patient = next(p for p in (phantom / "extendedPart").iterdir() if p.is_dir())
    folder = home / "extendedPart" / patient.name
    shutil.copytree(patient, folder)
    for patterns, angles in _GRIDS.values():
        turn = Rotation.from_euler("xyz", angles).as_matrix()
        for file in (f for pattern in patterns for f in folder.glob(pattern)):
            _turn(file, turn)
    return home


def _turn(file: Path, turn: np.ndarray) -> None:
    image = nib.Nifti1Image.from_filename(file)
    affine = image.affine.copy()
    affine[:3] = turn @ affine[:3]
    # The header is kept: it says how the numbers are scaled.
    moved = nib.Nifti1Image(image.dataobj.get_unscaled(), None, image.header)
    moved.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    moved.set_qform(affine, 1)
    moved.set_sform(affine, 1)
    moved.to_filename(file)
