"""What the NIfTI files of a patient say, by nibabel alone: voxels, affines, places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lundprobe_zarr.vocabulary.files import KNOWN_FILES, SourceFile

#: x and y of RAS have the other sign in LPS.
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class File:
    """A volume (x, y, z) with its affine, voxel (i, j, k) -> mm, LPS."""

    record: SourceFile
    path: Path

    @cached_property
    def image(self) -> Any:
        return nib.Nifti1Image.from_filename(self.path)

    @cached_property
    def voxels(self) -> np.ndarray:
        return np.asanyarray(self.image.dataobj)

    @cached_property
    def lps(self) -> np.ndarray:
        return TO_LPS @ self.image.affine

    @cached_property
    def inverse(self) -> np.ndarray:
        return np.linalg.inv(self.lps)

    def at(self, point: np.ndarray) -> Any:
        """Value of the voxel nearest to (x, y, z), mm, LPS; None outside."""
        i, j, k = np.floor((self.inverse @ [*point, 1.0])[:3] + 0.5).astype(int)
        if any(n < 0 or n >= most for n, most in zip((i, j, k), self.voxels.shape, strict=True)):
            return None
        return self.voxels[i, j, k]


def files_of(folder: Path) -> Mapping[tuple[str, tuple[Any, ...]], File]:
    """Every volume below a patient's folder, by its array's path and sorted labels."""
    found = {}
    for name, record in KNOWN_FILES.items():
        if name.endswith(".nii.gz") and (folder / name).exists():
            key = f"{record.group}/{record.variable}", tuple(sorted(record.labels.items()))
            found[key] = File(record, folder / name)
    return found


def stored(value: Any) -> Any:
    """A value as `standard` precision stores it: float64 that float32 cannot hold is rounded."""
    return float(np.float32(value))
