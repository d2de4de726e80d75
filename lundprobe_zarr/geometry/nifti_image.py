"""Make a NIfTI image of voxels in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import SAME_GRID_MM, largest_shift

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

#: "Scanner": positions are in the patient's frame as acquired (nifti1.h, NIFTI_XFORM_SCANNER_ANAT).
_SCANNER = 1
#: Axes that a NIfTI image may have.
_MOST_AXES = 7


def nifti_image(values: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Nifti1Image:
    """Return values (…, z, y, x) as a NIfTI-1 image (i, j, k, …); masks uint8, float16 as float32.

    `affine` (4, 4), voxel (i, j, k) -> mm, RAS, is kept exactly in the image. A NIfTI-1 file holds
    it as float32, which is exact for affines from NIfTI files. Sform and qform are both set; the
    unit is mm. Raises `UsageError` for more than seven axes.
    """
    from nibabel.nifti1 import Nifti1Image

    if values.ndim > _MOST_AXES:
        raise UsageError(
            f"an array of shape {values.shape} as NIfTI", expected=f"at most {_MOST_AXES} axes"
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    # nibabel refuses 64-bit integers unless dtype is given: few readers know them
    image = Nifti1Image(values.transpose(), affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    # update_affine would round the image's affine to the header's float32
    image.set_qform(affine, _SCANNER, update_affine=False)
    image.set_sform(affine, _SCANNER, update_affine=False)
    if largest_shift(image.get_qform(), affine, image.shape[:3]) > SAME_GRID_MM:
        image.header["qform_code"] = 0  # a quaternion cannot describe a sheared grid
    return image
