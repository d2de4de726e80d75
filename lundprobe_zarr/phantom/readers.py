"""Segmentations of the extended part: ten network folds and four observers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.phantom.grids import Grid, Slices
from lundprobe_zarr.phantom.sampling import Array, Float32, noise_field
from lundprobe_zarr.phantom.shapes import Sampled, grown, mesh
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STEPS

Mask = npt.NDArray[np.bool_]

#: Distance (mm) beyond the organ up to which probabilities are computed; 0 further out.
_MARGIN = 16.0
#: Width (mm) of the border over which a fold's probability falls from 0.73 to 0.27.
_SOFTNESS = 1.1
#: Fraction of the step-1 deviation that remains in step 2, with the uncertainty map.
_KEPT = 0.45


@dataclass(frozen=True)
class Reading:
    """All segmentations of one target, within `window` of the MRI grid; empty outside.

    `probabilities` is (fold, z, y, x) float32, `observers` maps (step, observer) -> mask (z, y, x).
    """

    window: Slices
    probabilities: Float32
    observers: dict[tuple[int, str], Mask]

    @property
    def folds(self) -> Mask:
        """Masks of the ten folds, (fold, z, y, x): probability above one half."""
        return np.greater(self.probabilities, 0.5)

    @property
    def ensemble(self) -> Mask:
        """Mask (z, y, x) of the mean probability above one half."""
        mean: Float32 = self.probabilities.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.greater(mean, 0.5)

    @property
    def uncertainty(self) -> Float32:
        """Voxel-wise standard deviation (z, y, x), float32, of the folds' probabilities."""
        deviation: Float32 = self.probabilities.std(axis=0, dtype=np.float64).astype(np.float32)
        return deviation


def read_target(rng: np.random.Generator, organ: Sampled, grid: Grid) -> Reading:
    """Segment one organ on the MRI grid by each fold and observer, with different errors."""
    box = grown(organ.box, _MARGIN)
    window = grid.crop(box)
    z, y, x = (a[s] for a, s in zip(grid.axes, window, strict=True))
    axes = (z, y, x)
    distance = organ.distance(mesh(axes))
    # On coarse lattices an error of a millimetre changes no voxel, so errors are larger.
    error = 1.0 + 0.28 * float(np.mean(grid.spacing))
    low, high = np.array(box[0]), np.array(box[1])

    def ripple(step: float) -> Array:
        return noise_field(rng, low, high, step, 0.8).on(axes)

    shared = np.float32(0.5 * error) * ripple(12.0)
    folds = [_fold(rng, distance + shared, error, ripple(9.0)) for _ in FOLDS]
    observers: dict[tuple[int, str], Mask] = {}
    for observer in OBSERVERS:
        habit = np.float32(rng.normal(0, 0.6 * error)) + np.float32(0.9 * error) * ripple(11.0)
        for step in STEPS:
            kept = np.float32(1.0 if step == 1 else _KEPT)
            slip = np.float32(0.15 * error) * ripple(8.0)
            observers[step, observer] = distance + kept * (shared + habit) + slip <= 0
    return Reading(window, np.stack(folds), observers)


def _fold(rng: np.random.Generator, distance: Array, error: float, ripple: Array) -> Array:
    moved = distance + np.float32(rng.normal(0, 0.3 * error)) + np.float32(0.8 * error) * ripple
    steep = np.clip(moved / np.float32(_SOFTNESS), -80, 80)
    out: Array = (1 / (1 + np.exp(steep))).astype(np.float32)
    return out
