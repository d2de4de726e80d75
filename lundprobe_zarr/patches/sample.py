"""The keys of a stream's samples and their types."""

from __future__ import annotations

from typing import Any, Required, TypedDict

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
#: A sample under construction; callers receive it as a `Sample`.
RawSample = dict[str, Any]


class Sample(TypedDict, total=False):
    """One patch with its labels. Required keys are always present, the others on request.

    Arrays end in (z, y, x). `…present` flags which of their labels the patient has, by the source
    files: a mask file without a voxel counts. A transform may add keys of its own.

    Attributes
    ----------
    start
        First voxel (z, y, x) on the patient's lattice (3,), int64.
    affine
        Affine (4, 4), float64, voxel (i, j, k) of the patch -> mm, RAS.
    epoch, index
        Item `index` of the order of `epoch`.
    draw
        Number of the patch among the patient's patches.
    seed
        Seed for random transforms of this sample, 0 ≤ seed < 2⁶³.
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
