"""Stored volumes, read with nothing of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

import lundprobe_zarr as lp


def stored(cohort: lp.Cohort, patient_id: str, group: str) -> xr.Dataset:
    """A group of a patient's store, opened with nothing of ours."""
    store = Path(cohort.location.url) / "patients" / f"{patient_id}.zarr"
    return xr.open_zarr(store, group=group, chunks=None)


def cut(volume: xr.DataArray, start: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A box of a stored volume, of what of it there is."""
    box = {d: slice(a, a + s) for d, a, s in zip("zyx", start.tolist(), size, strict=True)}
    return volume.isel(box).values
