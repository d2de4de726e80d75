"""Dose of a two-arc plan that conforms to the PTV: Gy, float32 multiples of one scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.phantom.anatomy import Anatomy
from lundprobe_zarr.phantom.grids import Axes, Grid
from lundprobe_zarr.phantom.sampling import Array, Float32, noise_field, resample, resampled_slices
from lundprobe_zarr.phantom.shapes import mesh
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

#: Finest lattice (mm) on which the dose is computed: it varies slowly.
_FINEST = 2.5


@dataclass(frozen=True)
class Dose:
    """The dose on the planning grid: `counts` (z, y, x) int32 times `scaling` (Gy)."""

    grid: Grid
    scaling: float
    counts: npt.NDArray[np.int32]

    @property
    def values(self) -> Float32:
        """Dose in Gy, (z, y, x) float32."""
        return self._gray(self.counts)

    def on(self, grid: Grid) -> Iterator[Float32]:
        """Yield the slices (y, x), Gy, float32, interpolated linearly; 0 outside the plan."""
        counts = self.counts.astype(np.float32)
        for plane in resampled_slices(counts, self.grid.axes, grid.axes, fill=0.0):
            yield self._gray(np.rint(plane))

    def _gray(self, counts: npt.NDArray[np.generic]) -> Float32:
        # As DICOM readers do: integer pixels times DoseGridScaling, then narrowed.
        return (counts.astype(np.float64) * self.scaling).astype(np.float32)


def plan_dose(rng: np.random.Generator, anatomy: Anatomy, grid: Grid) -> Dose:
    """Plan 42.7 Gy to the PTV on the planning grid."""
    axes = _working_axes(grid)
    gray = _relative(rng, anatomy, axes, max(grid.spacing)) * np.float32(PRESCRIPTION_GY)
    if axes is not grid.axes and tuple(map(len, axes)) != grid.shape:
        gray = resample(gray, axes, grid.axes, order=1).astype(np.float32)
    gray *= 1 + np.float32(0.002) * rng.standard_normal(grid.shape, dtype=np.float32)
    skin = anatomy.body.on(grid.axes)
    gray *= np.clip(np.float32(0.5) - skin / np.float32(6), 0, 1)
    scaling = round(float(rng.uniform(0.95, 1.05)) * _SCALING, 10)
    return Dose(grid, scaling, np.rint(gray / np.float32(scaling)).astype(np.int32))


#: Gy; with 32-bit pixels, as planning systems export, finer than 16 bits allow.
_SCALING = 3.6e-4


def _working_axes(grid: Grid) -> Axes:
    z, y, x = (
        a if s >= _FINEST else np.arange(a[0], a[-1] + _FINEST, _FINEST)
        for a, s in zip(grid.axes, grid.spacing[::-1], strict=True)
    )
    return z, y, x


def _relative(rng: np.random.Generator, anatomy: Anatomy, axes: Axes, voxel: float) -> Array:
    """Return dose over prescription, (z, y, x) float32, as if the body filled all space."""
    points = mesh(axes)
    distance = anatomy.ptv.distance(points)
    # Coarse lattices blur the edge, so the plateau must extend further beyond the PTV.
    outside = np.maximum(distance - np.float32(0.3 + 0.55 * voxel), np.float32(0))
    bath = _bath_length(rng, anatomy, points)
    low = np.float32(0.36) * np.exp(-outside / bath)
    high = np.float32(0.64) * np.exp(-outside / np.float32(6.5))
    beyond = _beyond(anatomy, points[0], voxel)
    low_corner, high_corner = (np.array([a[i] for a in axes[::-1]]) for i in (0, -1))
    ripple = noise_field(rng, low_corner, high_corner, 14.0, 1.0).on(axes)
    level, hot = np.float32(rng.uniform(1.004, 1.012)), np.float32(rng.uniform(0.006, 0.018))
    inside = level + hot * np.clip(ripple, np.float32(-1.2), np.float32(2.5))
    out: Array = (low * np.exp(-beyond / np.float32(11)) + high) * inside
    return out


def _bath_length(
    rng: np.random.Generator, anatomy: Anatomy, points: tuple[Float32, Float32, Float32]
) -> Array:
    """Return the fall-off length (mm) of the low dose: long to the left, short to the back."""
    x0, y0, _ = anatomy.prostate
    angle = np.arctan2(points[1] - np.float32(y0), points[2] - np.float32(x0))
    spokes = np.cos(7 * angle + np.float32(rng.uniform(0, 6.28)))
    shape = 1 + 0.26 * np.cos(2 * angle) + 0.22 * np.cos(angle) - 0.24 * np.sin(angle)
    out: Array = (52 * (shape + 0.07 * spokes)).astype(np.float32)
    return out


def _beyond(anatomy: Anatomy, z: Float32, voxel: float) -> Float32:
    """Return the distance (mm) above or below the PTV; the coplanar arcs extend more downwards."""
    (_, _, low), (_, _, high) = anatomy.ptv.box
    reach = np.float32(2.0 + voxel)
    above = np.maximum(z - np.float32(high) - reach, 0)
    below = np.maximum(np.float32(low) - z - reach, 0)
    out: Float32 = above + np.float32(0.8) * below
    return out
