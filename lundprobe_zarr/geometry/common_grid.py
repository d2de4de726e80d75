"""A common grid for the volumes of many patients, centred on a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray, affine_from_axes
from lundprobe_zarr.geometry.lattice import Grid, voxel_sizes
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS
from lundprobe_zarr.vocabulary.suggest import require_structure


@dataclass(frozen=True)
class CommonGrid:
    """A grid of one shape and voxel size, centred on a structure of each patient.

    Its axes are the patient's (LPS): z to the head, y to the back, x to the left.

    Parameters
    ----------
    spacing_mm : float or sequence of float
        Voxel size, mm: (z, y, x), or one number for all axes.
    shape : sequence of int
        Voxels along (z, y, x).
    centre : str
        Structure whose centroid (clinical mask) is the centre of the grid.

    Raises
    ------
    UsageError
        If the spacing or the shape is no such thing.
    UnknownLabelError
        If `centre` is no structure.
    """

    spacing_mm: float | Sequence[float]
    shape: Sequence[int]
    centre: str = "CTVT_427"

    def __post_init__(self) -> None:
        voxel_sizes(self.spacing_mm)
        shape = np.asarray(self.shape)
        if shape.shape != (3,) or shape.dtype.kind not in "iu" or (shape < 1).any():
            raise UsageError(f"shape is {self.shape!r}", expected="three voxel counts (z, y, x)")
        require_structure(self.centre)

    @property
    def sizes(self) -> FloatArray:
        """Voxel size (z, y, x), mm."""
        return voxel_sizes(self.spacing_mm)

    def axes(self) -> dict[str, FloatArray]:
        """Return the voxel centres along z, y, x, mm from the centre of the grid."""
        return {
            dim: (np.arange(n) - (n - 1) / 2) * size
            for dim, n, size in zip(SPATIAL_DIMS, self.shape, self.sizes, strict=True)
        }

    def about(self, centre_mm: Sequence[float]) -> Grid:
        """Return the grid of a patient, centred at `centre_mm` (z, y, x), mm, LPS."""
        first = [float(axis[0]) for axis in self.axes().values()]
        z, y, x = (int(n) for n in self.shape)
        return Grid(affine_from_axes(np.asarray(centre_mm) + first, self.sizes), (z, y, x))
