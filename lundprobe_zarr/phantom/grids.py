"""Voxel lattices of a synthetic patient: MRI, synthetic CT and dose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Size = Literal["tiny", "small", "full"]
SIZES: tuple[Size, ...] = ("tiny", "small", "full")

Float = npt.NDArray[np.float64]
#: Voxel-centre coordinates (z, y, x) in mm, LPS, each one-dimensional float64.
Axes = tuple[Float, Float, Float]
#: (low, high) corners in mm, LPS, each (x, y, z).
Box = tuple[tuple[float, float, float], tuple[float, float, float]]
Slices = tuple[slice, slice, slice]

#: In-plane field of view, mm (FACTS of the scanner: 1024 voxels of 0.4375 or 0.4688 mm).
_FOV = {"oldAcq": 448.0, "newAcq": 480.0512}


@dataclass(frozen=True)
class Grid:
    """A lattice along the patient's axes.

    `shape` is (z, y, x). `spacing`, mm, and `origin`, the centre of voxel (0, 0, 0), mm, LPS, are
    (x, y, z).
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def axes(self) -> Axes:
        """Voxel-centre coordinates (z, y, x), float64, mm, LPS, increasing."""
        z, y, x = (
            o + s * np.arange(n, dtype=np.float64)
            for o, s, n in zip(self.origin[::-1], self.spacing[::-1], self.shape, strict=True)
        )
        return z, y, x

    @property
    def affine(self) -> Float:
        """Affine (4, 4), float64, voxel (i, j, k) = (x, y, z) indices -> mm, RAS as in NIfTI."""
        (sx, sy, sz), (ox, oy, oz) = self.spacing, self.origin
        return np.array(
            [[-sx, 0, 0, -ox], [0, -sy, 0, -oy], [0, 0, sz, oz], [0, 0, 0, 1]], dtype=np.float64
        )

    def crop(self, box: Box) -> Slices:
        """Return the index ranges (z, y, x) of voxel centres inside `box`; they may be empty."""
        ranges = []
        for axis, low, high in zip(self.axes, box[0][::-1], box[1][::-1], strict=True):
            start, stop = np.searchsorted(axis, [low, high])
            ranges.append(slice(int(start), int(stop)))
        return ranges[0], ranges[1], ranges[2]

    def coarser(self, factor: int) -> Grid:
        """Return the lattice with `factor` times fewer rows and columns and the same extent."""
        nz, ny, nx = self.shape
        (sx, sy, sz), (ox, oy, oz) = self.spacing, self.origin
        shift = (factor - 1) / 2
        return Grid(
            (nz, ny // factor, nx // factor),
            (sx * factor, sy * factor, sz),
            (ox + shift * sx, oy + shift * sy, oz),
        )


@dataclass(frozen=True)
class PatientGrids:
    """The three lattices of one patient."""

    mri: Grid
    sct: Grid
    dose: Grid


@dataclass(frozen=True)
class _Recipe:
    """Ranges of voxel counts (inclusive), and voxel sizes that depend on the phantom's size."""

    mri_x: tuple[int, int]
    mri_rows_less: tuple[int, int]
    mri_z: tuple[int, int]
    z_extent: float
    sct_pixel: tuple[float, float]
    sct_slice: float  # in MRI slices
    dose_factor: float


_RECIPES: dict[Size, _Recipe] = {
    "tiny": _Recipe((49, 64), (6, 9), (12, 16), 168.0, (8.6, 9.6), 0.9, 4.0),
    "small": _Recipe((244, 272), (8, 20), (29, 35), 212.0, (2.0, 2.4), 0.9, 2.0),
    "full": _Recipe((1024, 1024), (0, 0), (88, 88), 220.0, (0.72, 0.78), 1.0, 1.0),
}
#: Fraction of the MRI's extent that is below the prostate's centre.
_BELOW = 0.52


def plan_grids(
    rng: np.random.Generator,
    size: Size,
    protocol: str,
    index: int,
    prostate: tuple[float, float, float],
    body: tuple[float, float],
) -> PatientGrids:
    """Sample one patient's three lattices.

    `prostate` is its centre (x, y, z) and `body` the trunk's centre (x, y), in mm, LPS. Matrix,
    voxel size and origin all differ between the lattices and between patients.
    """
    recipe = _RECIPES[size]
    mri = _mri_grid(rng, recipe, protocol, index, prostate[2], body)
    sct = _sct_grid(rng, recipe, mri, body)
    fine = size != "tiny" and index % 4 == 3
    return PatientGrids(mri, sct, _dose_grid(rng, recipe.dose_factor, fine, mri, body))


def _between(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))


def _around(centre: float, n: int, spacing: float, jitter: float) -> float:
    """Return the first voxel centre of a row centred at `centre` + `jitter`, 4 decimals."""
    return round(float(centre + jitter - spacing * (n - 1) / 2), 4)


def _mri_grid(
    rng: np.random.Generator,
    recipe: _Recipe,
    protocol: str,
    index: int,
    prostate_z: float,
    body: tuple[float, float],
) -> Grid:
    nx = _between(rng, recipe.mri_x)
    ny = nx - _between(rng, recipe.mri_rows_less)
    nz = _between(rng, recipe.mri_z)
    pixel = round(_FOV[protocol] / nx, 4)
    thick = round(recipe.z_extent / nz, 2)
    if index % 3 == 2 and recipe.mri_x[0] == recipe.mri_x[1]:
        nz += 2 * _between(rng, (-3, -1))  # real data also deviate from the nominal matrix
    jitter = rng.uniform(-3.0, 3.0, 3)
    return Grid(
        (nz, ny, nx),
        (pixel, pixel, thick),
        (
            _around(body[0], nx, pixel, jitter[0]),
            _around(body[1], ny, pixel, jitter[1]),
            round(float(prostate_z - _BELOW * nz * thick + jitter[2]), 4),
        ),
    )


def _sct_grid(
    rng: np.random.Generator, recipe: _Recipe, mri: Grid, body: tuple[float, float]
) -> Grid:
    pixel = round(rng.uniform(*recipe.sct_pixel), 3)
    thick = round(mri.spacing[2] * recipe.sct_slice, 2)
    extent = mri.shape[0] * mri.spacing[2]
    nx = round(rng.uniform(440.0, 452.0) / pixel)
    ny = round(rng.uniform(404.0, 418.0) / pixel)
    nz = int(np.ceil(extent / thick)) + 2
    jitter = rng.uniform(-3.0, 3.0, 2)
    # Extra slices below and above: every MRI slice has sCT slices on both sides.
    low = mri.origin[2] - thick * rng.uniform(0.25, 0.9)
    return Grid(
        (nz, ny, nx),
        (pixel, pixel, thick),
        (
            _around(body[0], nx, pixel, jitter[0]),
            _around(body[1], ny, pixel, jitter[1]),
            round(low, 4),
        ),
    )


def _dose_grid(
    rng: np.random.Generator, factor: float, fine: bool, mri: Grid, body: tuple[float, float]
) -> Grid:
    base = (1.0, 1.0, 0.83) if fine else (2.5, 2.5, 2.5)
    sx, sy, sz = (round(s * factor, 3) for s in base)
    nx = round(rng.uniform(412.0, 424.0) / sx)
    ny = round(rng.uniform(262.0, 274.0) / sy)
    extent = (mri.shape[0] - 1) * mri.spacing[2]
    nz = int(extent * 0.96 / sz)
    jitter = rng.uniform(-2.0, 2.0, 3)
    return Grid(
        (nz, ny, nx),
        (sx, sy, sz),
        (
            _around(body[0], nx, sx, jitter[0]),
            _around(body[1], ny, sy, jitter[1]),
            _around(mri.origin[2] + extent / 2, nz, sz, jitter[2]),
        ),
    )
