"""Which voxels of a patient's grid are wanted: all, or a box about a structure, resampled or not.

The lattice is that of `.lp.resample`, the box that of `.lp.crop`, in this order: the voxels are
those of `data.lp.resample(spacing_mm).lp.crop(structure, patient, margin_mm=…)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.geometry.affine import FloatArray, index_to_lps
from lundprobe_zarr.geometry.lattice import Grid, Shape, respaced, voxel_sizes
from lundprobe_zarr.patches.lattice import stored_grid
from lundprobe_zarr.patches.locations import clinical_rows
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.suggest import require_structure

#: First and end voxel (z, y, x; end exclusive) of a structure's mask on a stored grid.
Bounds = tuple[tuple[int, ...], tuple[int, ...]]
#: Grids whose masks have bounds in the tables.
_WITH_MASKS = ("mri", "sct")


@dataclass(frozen=True, eq=False)
class Box:
    """A box of voxels of a lattice: first voxel and size, (z, y, x)."""

    lattice: Grid
    start: Shape
    size: Shape

    @property
    def grid(self) -> Grid:
        """The box as a lattice of its own."""
        return self.lattice.stepped(np.array(self.start, np.float64), np.ones(3), self.size)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as slices (z, y, x) of the lattice."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Frame:
    """The wanted voxels of a patient's grids.

    Parameters
    ----------
    spacing_mm : float or sequence of float, optional
        Voxel size to resample to, mm (z, y, x, or one number). None keeps the stored voxels.
    crop : str, optional
        Clinical structure to crop to. Its box comes from the tables: on a grid with a mask of it,
        that mask's; else the box on the MRI grid.
    margin_mm : float
        Smallest margin around it, mm. The box is clipped to the volume.

    Raises
    ------
    UsageError
        For an invalid spacing or margin, or a margin without a structure.
    UnknownLabelError
        For an unknown structure.
    """

    spacing_mm: float | Sequence[float] | None = None
    crop: str | None = None
    margin_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.spacing_mm is not None:
            object.__setattr__(self, "spacing_mm", tuple(voxel_sizes(self.spacing_mm).tolist()))
        if self.crop is not None:
            require_structure(self.crop)
        margin = self.margin_mm
        if not isinstance(margin, (int, float)) or not 0 <= margin < np.inf:
            raise UsageError(f"margin_mm={margin!r}", expected="millimetres, 0 or more")
        if margin and self.crop is None:
            raise UsageError(f"margin_mm={margin!r} without a structure", expected="crop=, too")

    @property
    def is_stored(self) -> bool:
        """Whether all voxels are wanted as they are stored."""
        return self.spacing_mm is None and self.crop is None

    def bounds(self, cohort: Cohort) -> dict[str, dict[str, Bounds]]:
        """Return where the structure is: patient -> grid -> first and end voxel. Reads a table.

        Patients without the structure, or with an empty mask, have no entry. Without a structure
        to crop to, the result is empty.
        """
        found: dict[str, dict[str, Bounds]] = {}
        if self.crop is None:
            return found
        for grid in _WITH_MASKS:
            table = clinical_rows(cohort, grid, self.crop, ["bbox_start", "bbox_stop"])
            names = ("patient_id", "bbox_start", "bbox_stop")
            for patient, *ends in zip(*(table.column(n).to_pylist() for n in names), strict=True):
                if None not in ends:
                    found.setdefault(patient, {})[grid] = (tuple(ends[0]), tuple(ends[1]))
        return found

    def box(self, metadata: StoreMetadata, grid: str, bounds: Mapping[str, Bounds]) -> Box:
        """Return the box of voxels on a grid of a patient.

        `bounds` are those of the patient. Raises `MissingStructureError` for a patient without the
        structure, `UsageError` if it lies outside the grid, `UnknownLabelError` without the grid.
        """
        stored = stored_grid(metadata, grid)
        lattice = stored if self.spacing_mm is None else respaced(stored, self.spacing_mm)
        if self.crop is None:
            return Box(lattice, (0, 0, 0), lattice.shape)
        start, stop = lattice.touched(self._corners(metadata, grid, bounds), self.margin_mm)
        first, last = np.maximum(start, 0), np.minimum(stop, lattice.shape)
        if (first >= last).any():
            raise UsageError(
                f"{self.crop} lies outside the {grid} grid of patient {metadata.patient_id}",
                expected="an overlap",
            )
        return Box(lattice, _triple(first), _triple(last - first))

    def _corners(
        self, metadata: StoreMetadata, grid: str, bounds: Mapping[str, Bounds]
    ) -> FloatArray:
        """Return the corners (8, 3) of the structure's box, (z, y, x), mm, LPS."""
        own = grid if grid in bounds else "mri"
        if own not in bounds:
            raise MissingStructureError(
                f"patient {metadata.patient_id} lacks {self.crop} on the MRI grid, or its mask is "
                "empty: there is nothing to crop to",
                patient=metadata.patient_id,
                remedy=f'leave such patients out with "NOT missing_{self.crop}"',
            )
        start, stop = (np.asarray(end, np.float64) - 0.5 for end in bounds[own])
        corners = np.array(list(product(*zip(start, stop, strict=True))))
        return index_to_lps(stored_grid(metadata, own).affine, corners)


def _triple(values: npt.NDArray[Any]) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x
