"""Affine <-> axes: where the voxels of a grid lie in the patient.

Two frames occur. NIfTI headers hold an affine from voxel indices (i, j, k) to millimetres in
**RAS** (x to the patient's right is negative, +y anterior, +z superior). The stores' coordinates
and the fiducials are in the DICOM patient frame, **LPS** (+x left, +y posterior, +z superior).
The two differ by the sign of x and y. All positions are voxel *centres*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Direction cosines may be off by this much before an axis counts as oblique (dataset layout).
COSINE_TOLERANCE = 1e-5
#: Two headers describe the same grid if no voxel centre moves by more than this. Headers hold
#: float32: at 500 mm from the origin that resolves 3e-5 mm, and a quaternion's rotation less.
SAME_GRID_MM = 1e-3
#: Voxels that an axis can have: what NIfTI-1 can say, thirty times as many as there are.
LONGEST_AXIS = 32767

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ras_to_lps(affine: npt.ArrayLike) -> FloatArray:
    """Affine (4, 4), voxel (i, j, k) -> mm, from RAS to LPS, or back: it is its own inverse."""
    return np.asarray(_RAS_TO_LPS @ np.asarray(affine, dtype=np.float64), dtype=np.float64)


def spacing(affine: npt.ArrayLike) -> FloatArray:
    """Distance of neighbouring voxel centres along i, j, k (3,), mm: the affine's column norms."""
    return np.asarray(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def is_aligned(affine: npt.ArrayLike) -> bool:
    """Whether i, j, k run along the patient's x, y, z (either way), within `COSINE_TOLERANCE`."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    return bool(np.all(np.abs(cosines - np.eye(3)) <= COSINE_TOLERANCE))


def axis_coordinates(affine: npt.ArrayLike, shape: Sequence[int]) -> dict[str, FloatArray]:
    """Coordinates `z`, `y`, `x` of the voxel centres, mm, LPS, float64.

    `affine` is (4, 4), voxel (i, j, k) -> mm, RAS; `shape` is the array's (z, y, x). Empty if
    the axes are not aligned with the patient's: then the affine alone is the truth.
    """
    if not is_aligned(affine):
        return {}
    lps = ras_to_lps(affine)
    return {
        name: lps[row, 3] + lps[row, row] * np.arange(shape[2 - row], dtype=np.float64)
        for name, row in (("z", 2), ("y", 1), ("x", 0))
    }


def origin_lps(affine: npt.ArrayLike) -> FloatArray:
    """Centre of voxel (0, 0, 0) as (z, y, x), mm, LPS."""
    return ras_to_lps(affine)[:3, 3][::-1].copy()


def index_to_lps(affine: npt.ArrayLike, zyx: npt.ArrayLike) -> FloatArray:
    """Positions (…, 3) as (z, y, x), mm, LPS, of array indices (…, 3) in (z, y, x) order.

    Indices may be fractional; `affine` is (4, 4), voxel (i, j, k) -> mm, RAS.
    """
    lps = ras_to_lps(affine)
    ijk = np.asarray(zyx, dtype=np.float64)[..., ::-1]
    return np.asarray((ijk @ lps[:3, :3].T + lps[:3, 3])[..., ::-1])


def affine_from_axes(first: npt.ArrayLike, step: npt.ArrayLike) -> FloatArray:
    """Affine (4, 4), voxel (i, j, k) -> mm, RAS, of voxels in rows along the patient's axes.

    `first` is the centre of the first voxel and `step` the way to the next, each (z, y, x), mm,
    LPS; steps may be negative. The inverse of `axis_coordinates`.
    """
    lps = np.diag([*np.asarray(step, dtype=np.float64)[::-1], 1.0])
    lps[:3, 3] = np.asarray(first, dtype=np.float64)[::-1]
    return ras_to_lps(lps)


def largest_shift(a: npt.ArrayLike, b: npt.ArrayLike, shape: Sequence[int]) -> float:
    """Largest distance (mm) between the places two affines give the same voxel.

    Affine maps differ most at a corner, so the eight corner voxels of `shape` (i, j, k) suffice.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(8)])
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(np.linalg.norm((difference @ homogeneous)[:3], axis=0).max())
