"""A labelled volume as the image of another library, every voxel where it was."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from nibabel.nifti1 import Nifti1Image

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import SAME_GRID_MM, largest_shift, ras_to_lps, spacing
from lundprobe_zarr.labelled.grid import grid_of, single_volume

#: "Scanner": positions are in the patient's frame as acquired (nifti1.h, NIFTI_XFORM_SCANNER_ANAT).
_SCANNER = 1


def to_nifti(data: xr.DataArray) -> Nifti1Image:
    """See `lp.to_nifti`."""
    volume = single_volume(data)
    values, affine = _plain(volume).transpose(), grid_of(volume).affine
    # nibabel wants 64-bit integers asked for: few readers know them
    image = Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm")
    # not update_affine: that would round the image's own affine to the header's float32
    image.set_qform(affine, _SCANNER, update_affine=False)
    image.set_sform(affine, _SCANNER, update_affine=False)
    if largest_shift(image.get_qform(), affine, values.shape) > SAME_GRID_MM:
        image.header["qform_code"] = 0  # a quaternion cannot say a sheared grid: no reader uses it
    return image


def to_sitk(data: xr.DataArray) -> Any:
    """See `lp.to_sitk`."""
    try:
        sitk: Any = import_module("SimpleITK")
    except ImportError as error:
        raise UsageError(
            f"to_sitk needs SimpleITK ({error}); install it with `pip install SimpleITK`, or use "
            "`.lp.to_nifti()`"
        ) from error
    volume = single_volume(data)
    lps = ras_to_lps(grid_of(volume).affine)
    sizes = spacing(lps)
    image = sitk.GetImageFromArray(_plain(volume))
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    return image


def _plain(volume: xr.DataArray) -> npt.NDArray[Any]:
    """Values (z, y, x) in a type that images have: masks as uint8."""
    values = np.asarray(volume.values)
    return values.astype(np.uint8) if values.dtype == bool else values
