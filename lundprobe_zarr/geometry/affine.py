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

#: Largest deviation of a direction cosine for an axis that is not oblique (dataset layout).
COSINE_TOLERANCE = 1e-5
#: Two headers describe the same grid if no voxel centre moves by more than this. Headers hold
#: float32. At 500 mm from the origin float32 resolves 3e-5 mm; a quaternion is less exact.
SAME_GRID_MM = 1e-3
#: Most voxels along an axis: the limit of NIfTI-1, thirty times the largest axis of the data.
LONGEST_AXIS = 32767

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ras_to_lps(affine: npt.ArrayLike) -> FloatArray:
    """Convert an affine (4, 4), voxel (i, j, k) -> mm, from RAS to LPS or from LPS to RAS."""
    return np.asarray(_RAS_TO_LPS @ np.asarray(affine, dtype=np.float64), dtype=np.float64)


def spacing(affine: npt.ArrayLike) -> FloatArray:
    """Return the distances of neighbouring voxel centres along i, j, k (3,), mm."""
    return np.asarray(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def voxel_volume_cc(affine: npt.ArrayLike) -> float:
    """Return the volume of a voxel, cm³, of any orientation."""
    return abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000.0


def is_aligned(affine: npt.ArrayLike) -> bool:
    """Return whether i, j, k are parallel to the patient's x, y, z within `COSINE_TOLERANCE`."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = np.abs(matrix / np.linalg.norm(matrix, axis=0))
    return bool(np.all(np.abs(cosines - np.eye(3)) <= COSINE_TOLERANCE))


def axis_coordinates(affine: npt.ArrayLike, shape: Sequence[int]) -> dict[str, FloatArray]:
    """Return the coordinates `z`, `y`, `x` of the voxel centres, mm, LPS, float64.

    `affine` is (4, 4), voxel (i, j, k) -> mm, RAS; `shape` is the array's (z, y, x). The result is
    empty if the axes are not aligned with the patient's: only the affine describes such a grid.
    """
    if not is_aligned(affine):
        return {}
    lps = ras_to_lps(affine)
    return {
        name: lps[row, 3] + lps[row, row] * np.arange(shape[2 - row], dtype=np.float64)
        for name, row in (("z", 2), ("y", 1), ("x", 0))
    }


def origin_lps(affine: npt.ArrayLike) -> FloatArray:
    """Return the centre of voxel (0, 0, 0) as (z, y, x), mm, LPS."""
    return ras_to_lps(affine)[:3, 3][::-1].copy()


def index_to_lps(affine: npt.ArrayLike, zyx: npt.ArrayLike) -> FloatArray:
    """Convert array indices (…, 3) in (z, y, x) order to positions (z, y, x), mm, LPS.

    Indices may be fractional; `affine` is (4, 4), voxel (i, j, k) -> mm, RAS.
    """
    lps = ras_to_lps(affine)
    ijk = np.asarray(zyx, dtype=np.float64)[..., ::-1]
    return np.asarray((ijk @ lps[:3, :3].T + lps[:3, 3])[..., ::-1])


def affine_from_axes(first: npt.ArrayLike, step: npt.ArrayLike) -> FloatArray:
    """Return the affine (4, 4), voxel (i, j, k) -> mm, RAS, of a grid along the patient's axes.

    `first` is the centre of the first voxel; `step` is the distance to the next. Both are
    (z, y, x), mm, LPS. Steps may be negative. The inverse of `axis_coordinates`.
    """
    lps = np.diag([*np.asarray(step, dtype=np.float64)[::-1], 1.0])
    lps[:3, 3] = np.asarray(first, dtype=np.float64)[::-1]
    return ras_to_lps(lps)


def largest_shift(a: npt.ArrayLike, b: npt.ArrayLike, shape: Sequence[int]) -> float:
    """Return the largest distance (mm) between the positions of a voxel under two affines.

    Affine maps differ most at a corner, so the eight corner voxels of `shape` (i, j, k) suffice.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(8)])
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(np.linalg.norm((difference @ homogeneous)[:3], axis=0).max())
