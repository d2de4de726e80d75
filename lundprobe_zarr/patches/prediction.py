"""A predicted volume: where it lies, on the stored voxels, and as a NIfTI file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.geometry.lattice import Grid, Move, resample_volume
from lundprobe_zarr.geometry.nifti_image import nifti_image

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Prediction:
    """A patient's predicted volume: `values` (…, z, y, x) on the voxels of `lattice`.

    `stored` is the patient's own grid; the lattice is that one unless patches were resampled.
    """

    patient_id: str
    values: Array
    lattice: Grid
    stored: Grid

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4), float64, voxel (i, j, k) -> mm, RAS; of the stored grid its own."""
        return self.lattice.affine

    @property
    def spacing_mm(self) -> FloatArray:
        """Distance of neighbouring voxel centres along z, y, x (3,), mm."""
        return self.lattice.spacing_mm

    def map(self, function: Callable[[Array], npt.ArrayLike]) -> Prediction:
        """The same with `function(values)`, e.g. `lambda v: v.argmax(axis=0)`.

        Raises `UsageError` if the result's last axes are not the lattice's (z, y, x).
        """
        values = np.asarray(function(self.values))
        if values.shape[-3:] != self.lattice.shape:
            raise UsageError(
                f"values of shape {values.shape} of patient {self.patient_id}",
                expected=f"(…, z, y, x) on the lattice's {self.lattice.shape} voxels",
            )
        return replace(self, values=values)

    def native(self, order: int | None = None) -> Prediction:
        """On the stored grid's voxels; itself if it is there already.

        `order` is that of the interpolation: 0 takes the nearest voxel, 1 is linear. Without, it
        is linear for floats and masks (mask where that gives a half or more), and nearest for
        whole numbers, which are labels. Values reach half a voxel of the lattice beyond its
        outermost centres; stored voxels further out, of which there are none where the lattice is
        `spacing_mm`'s but at its rim, get the outermost value. Nothing is smoothed before: to
        coarser voxels it samples. Float16 becomes float32. Raises `UsageError` for another order.
        """
        if order not in (None, 0, 1):
            raise UsageError(f"order={order!r}", expected="0 (nearest), 1 (linear) or None")
        if self.lattice is self.stored:
            return self
        kind = self.values.dtype.kind
        degree = order if order is not None else int(kind not in "iu")
        exact = kind == "b" or (degree == 0 and self.values.dtype != np.float16)
        dtype = self.values.dtype if exact else np.result_type(self.values.dtype, np.float32)
        move = Move.between(self.lattice, self.stored)
        labels = self.values.shape[:-3]
        values = np.empty((*labels, *self.stored.shape), dtype)
        for place in np.ndindex(*labels):
            volume = self.values[place].astype(dtype, copy=False)
            values[place] = resample_volume(volume, move, degree, dtype)
        return replace(self, values=values, lattice=self.stored)

    def to_nifti(self) -> Nifti1Image:
        """As a nibabel image (i, j, k, …) with the affine; see `nifti_image`."""
        return nifti_image(self.values, self.affine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a local `.nii` or `.nii.gz` file, which appears when it is complete.

        Channels come after (i, j, k); masks are uint8. The file's affine is float32, as NIfTI-1
        has it: exactly that of a stored grid which came with such a one. Raises `UsageError` for
        another ending, `OSError` if it cannot be written.
        """
        target = Path(path)
        ending = next((e for e in (".nii.gz", ".nii") if target.name.endswith(e)), None)
        if ending is None:
            raise UsageError("expected a name that ends in .nii.gz or .nii", where=target)
        draft = target.with_name(f".{target.name.removesuffix(ending)}.{os.getpid()}{ending}")
        try:
            self.to_nifti().to_filename(draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
