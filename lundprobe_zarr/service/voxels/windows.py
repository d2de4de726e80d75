"""What a volume is shown with at first: the range of values from black to white."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.geometry.plane import nearest_voxel
from lundprobe_zarr.service.voxels.volumes import Labels, OpenPatient
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

#: Percentiles of a T2w image that are black and white, as previews have them.
T2W_PERCENTILES = (1.0, 99.7)
#: Soft-tissue window of the synthetic CT, HU.
SCT_WINDOW = (-160.0, 240.0)
#: The fixed scale of the uncertainty: a standard deviation of values in 0 to 1 is at most 0.5.
UNCERTAINTY_WINDOW = (0.0, 0.5)
#: Every so many voxels of rows and columns are looked at.
_EVERY = 4
#: Slices that are looked at: those of one inner chunk at most, around where the page opens.
_SLICES = 8
_TARGET, _BODY = "CTVT_427", "BODY"


def window_of(patient: OpenPatient, path: str, labels: Labels) -> tuple[float, float]:
    """Return the values (low, high) that a volume is first shown with, in its unit.

    T2w has no scale of its own: percentiles of some slices around the opening point, within the box
    of the BODY. They are found once a store. Raises `DamagedStoreError`.
    """
    if labels.get("modality") == "T2w":
        return _t2w_window(patient)
    if "modality" in labels:
        return SCT_WINDOW
    if path.endswith("dose"):
        return 0.0, PRESCRIPTION_GY
    return UNCERTAINTY_WINDOW if path.endswith("uncertainty") else (0.0, 1.0)


@lru_cache(maxsize=64)  # as many as are kept open
def _t2w_window(patient: OpenPatient) -> tuple[float, float]:
    box = _sample_box(patient)
    voxels = patient.read("mri/image", {"modality": "T2w"}, box)[:, ::_EVERY, ::_EVERY]
    values = voxels[np.isfinite(voxels)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, T2W_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def t2w_sample(patient: OpenPatient) -> int:
    """Return how many bytes have to be decoded to find the window of the T2w image."""
    return patient.cost("mri/image", {"modality": "T2w"}, _sample_box(patient))


def _sample_box(patient: OpenPatient) -> Box:
    """Return the slices of the chunk that holds the opening point, within the box of the BODY."""
    grid = patient.grid("mri")
    depth = min(_SLICES, patient.store.arrays["mri/image"].chunk[0])
    voxel = nearest_voxel(grid, opening_point(patient)[0])
    middle = grid.shape[0] // 2 if voxel is None else voxel[0]
    first = middle // depth * depth
    body = body_box(patient, "mri") or tuple(slice(0, n) for n in grid.shape)
    return slice(first, min(first + depth, grid.shape[0])), body[1], body[2]


def body_box(patient: OpenPatient, grid: str) -> Box | None:
    """Return the box of the clinical BODY on a grid; None without one."""
    boxes = (
        s.box
        for s in patient.segmentations
        if (s.grid, s.source, s.structure) == (grid, "clinical", _BODY)
    )
    return next(boxes, None)


def opening_point(patient: OpenPatient) -> tuple[list[float], str]:
    """Return the point (x, y, z), mm, LPS, at which a patient is first shown, and what it is."""
    for structure in (_TARGET, _BODY):
        for s in patient.segmentations:
            named = (s.grid, s.source, s.structure) == ("mri", "clinical", structure)
            if named and s.centroid_mm is not None:
                return list(s.centroid_mm), f"centroid of {structure}"
    grid = patient.grid("mri")
    middle = index_to_lps(grid.affine, (np.array(grid.shape) - 1) / 2)
    return middle[::-1].tolist(), "centre of the MRI grid"
