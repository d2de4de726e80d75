"""A predicted volume: its lattice, resampling to the stored grid, and NIfTI export."""

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
    """A patient's predicted volume; `Aggregator.finish` returns it.

    Attributes
    ----------
    patient_id
        The patient.
    values
        Array (…, z, y, x) on the voxels of `lattice`.
    lattice
        Lattice of `values`: the stored grid unless patches were resampled.
    stored
        The patient's stored grid.
    """

    patient_id: str
    values: Array
    lattice: Grid
    stored: Grid

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4), float64, voxel (i, j, k) -> mm, RAS; exact for the stored grid."""
        return self.lattice.affine

    @property
    def spacing_mm(self) -> FloatArray:
        """Distance of neighbouring voxel centres along z, y, x (3,), mm."""
        return self.lattice.spacing_mm

    def map(self, function: Callable[[Array], npt.ArrayLike]) -> Prediction:
        """Apply a function to the values, e.g. `lambda v: v.argmax(axis=0)`.

        Parameters
        ----------
        function
            Function of `values`; its result ends in the lattice's (z, y, x).

        Returns
        -------
        Prediction
            The result on the same lattice.

        Raises
        ------
        UsageError
            If the last axes of the result are not the lattice's (z, y, x).
        """
        values = np.asarray(function(self.values))
        if values.shape[-3:] != self.lattice.shape:
            raise UsageError(
                f"values of shape {values.shape} of patient {self.patient_id}",
                expected=f"(…, z, y, x) on the lattice's {self.lattice.shape} voxels",
            )
        return replace(self, values=values)

    def native(self, order: int | None = None) -> Prediction:
        """Resample to the stored grid, or return the prediction itself if it is on that grid.

        Values extend half a voxel beyond the outermost voxel centres of the lattice. Stored voxels
        further out, which exist only at the rim, get the outermost value. Values are not smoothed
        first: coarser voxels are samples, not means. Float16 becomes float32.

        Parameters
        ----------
        order
            0 (nearest) or 1 (linear). None is linear for floats and masks (a mask is True where
            the result is at least ½), and nearest for integers, which are labels.

        Returns
        -------
        Prediction
            The volume on the stored grid.

        Raises
        ------
        UsageError
            For another order.
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
        for index in np.ndindex(*labels):
            volume = self.values[index].astype(dtype, copy=False)
            values[index] = resample_volume(volume, move, degree, dtype)
        return replace(self, values=values, lattice=self.stored)

    def to_nifti(self) -> Nifti1Image:
        """Convert to a nibabel image.

        Returns
        -------
        nibabel.nifti1.Nifti1Image
            Values (i, j, k, …) with the affine, RAS; masks are uint8.
        """
        return nifti_image(self.values, self.affine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a NIfTI-1 file atomically: it appears only when it is complete.

        Channels follow (i, j, k); masks are uint8. NIfTI-1 stores the affine as float32, which is
        exact for grids from such files.

        Parameters
        ----------
        path
            Local path that ends in `.nii` or `.nii.gz`.

        Raises
        ------
        UsageError
            For another ending, or if there is no such folder.
        OSError
            If the file cannot be written.
        """
        target = Path(path)
        ending = next((e for e in (".nii.gz", ".nii") if target.name.endswith(e)), None)
        if ending is None:
            raise UsageError("expected a name that ends in .nii.gz or .nii", where=target)
        if not target.parent.is_dir():
            raise UsageError(
                "no such folder", where=target.parent, remedy="make it first", expected="a folder"
            )
        draft = target.with_name(f".{target.name.removesuffix(ending)}.{os.getpid()}{ending}")
        try:
            self.to_nifti().to_filename(draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
