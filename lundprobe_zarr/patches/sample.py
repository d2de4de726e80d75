"""What a sample of a stream is: its keys and their types."""

from __future__ import annotations

from typing import Any, Required, TypedDict

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


class Sample(TypedDict, total=False):
    """One patch with its labels. The required keys are always there, the others if asked for.

    `start` (3,) int64 is its first voxel (z, y, x) on the patient's lattice, `affine` (4, 4)
    float64 from voxel (i, j, k) of the patch to mm, RAS. `epoch` and `index` say which item of
    the stream it is, `draw` which patch of the patient's. `seed`, 0 ≤ seed < 2⁶³, is what a random
    transform of it should begin with. Arrays end in (z, y, x); `…present` say which of their
    labels the patient has. A transform may put in what it likes, of a dict of its own.
    """

    patient_id: Required[str]
    grid: Required[str]
    start: Required[npt.NDArray[np.int64]]
    affine: Required[npt.NDArray[np.float64]]
    epoch: Required[int]
    index: Required[int]
    draw: Required[int]
    seed: Required[int]

    image: npt.NDArray[Any]
    mask: Flags
    dose: npt.NDArray[Any]
    nnunet_mask: Flags
    fold_mask: Flags
    uncertainty: npt.NDArray[Any]
    observer_mask: Flags

    present: Flags
    nnunet_present: Flags
    fold_present: Flags
    uncertainty_present: Flags
    observer_present: Flags

    modality: tuple[str, ...]
    structure: tuple[str, ...]
    target: tuple[str, ...]
    fold: tuple[int, ...]
    step: tuple[int, ...]
    observer: tuple[str, ...]
