"""Small labelled volumes whose place is known, as groups of a store are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from scipy.spatial.transform import Rotation

from lundprobe_zarr.geometry.affine import axis_coordinates

SHAPE = (6, 7, 9)  # z, y, x


def aligned_affine() -> np.ndarray:
    """x runs to the left, y to the front, z to the head: one axis reversed against LPS."""
    affine = np.diag([-1.25, 0.75, 3.0, 1.0])
    affine[:3, 3] = [20.5, -33.0, 100.25]
    return affine


def oblique_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [0.2, -0.3, 0.1]).as_matrix() * [-1.25, -0.75, 3.0]
    affine[:3, 3] = [20.5, 33.0, 100.25]
    return affine


def volume(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> xr.Dataset:
    """A group as a store has it: `dose`, smooth and rough parts, and a blob of a `mask`."""
    random = np.random.default_rng(7)
    z, y, x = np.indices(shape)
    dose = (z * 1.5 + y * y * 0.2 - x + random.normal(size=shape)).astype(np.float32)
    mask = (z - 3) ** 2 + (y - 3) ** 2 + (x - 4) ** 2 < 7
    coords: dict[str, Any] = dict(axis_coordinates(affine, shape))
    return xr.Dataset(
        {
            "dose": (("z", "y", "x"), dose, {"units": "Gy"}),
            "mask": (("structure", "z", "y", "x"), np.stack([mask, ~mask])),
        },
        coords | {"structure": ["CTVT_427", "BODY"]},
        {"affine": affine.tolist(), "shape": list(shape)},
    )


def voxels_of(requests: Iterable[str]) -> list[str]:
    """Those of the objects read that hold voxels."""
    return [name for name in requests if "/c/" in name]
