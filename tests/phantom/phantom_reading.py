"""How the phantom's tests read a source tree: with nibabel alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Volume:
    """A file's voxels (z, y, x), raw, and its header."""

    array: np.ndarray
    header: nib.Nifti1Header

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxel centres (z, y, x), mm, LPS."""
        affine = self.header.get_best_affine() * np.array([[-1], [-1], [1], [1]])
        z, y, x = (
            affine[a, 3] + affine[a, a] * np.arange(self.header["dim"][a + 1]) for a in (2, 1, 0)
        )
        return z, y, x

    @property
    def centroid(self) -> np.ndarray:
        """Centre (x, y, z) of what is not zero, mm, LPS."""
        where = np.nonzero(self.array)
        return np.array([a[w].mean() for a, w in zip(self.axes, where, strict=True)])[::-1]


@dataclass(frozen=True)
class Tree:
    """A phantom and its patients' folders."""

    root: Path

    def folders(self, part: str) -> list[Path]:
        return sorted((self.root / f"{part}Part").iterdir())

    @property
    def all_folders(self) -> list[Path]:
        return sorted(self.root.glob("*Part/*"))

    @staticmethod
    def volume(folder: Path, path: str) -> Volume:
        image = nib.load(folder / path)
        return Volume(np.asarray(image.dataobj.get_unscaled()).T, image.header)
