"""Conversion of a labelled volume to images of other libraries, with exact geometry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import ras_to_lps, spacing
from lundprobe_zarr.geometry.nifti_image import nifti_image
from lundprobe_zarr.labelled.grid import grid_of, single_volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image


def to_nifti(data: xr.DataArray) -> Nifti1Image:
    """Convert to a nibabel image; see `lp.to_nifti`."""
    volume = single_volume(data)
    return nifti_image(np.asarray(volume.values), grid_of(volume).affine)


def to_sitk(data: xr.DataArray) -> Any:
    """Convert to a SimpleITK image; see `lp.to_sitk`."""
    try:
        sitk: Any = import_module("SimpleITK")
    except ImportError as error:
        raise UsageError(
            f"to_sitk needs SimpleITK ({error})",
            remedy="install it with `pip install SimpleITK`, or use `.lp.to_nifti()`",
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
    """Return values (z, y, x) in a type that images support: masks as uint8."""
    values = np.asarray(volume.values)
    return values.astype(np.uint8) if values.dtype == bool else values
