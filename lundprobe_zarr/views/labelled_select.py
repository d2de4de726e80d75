"""Select a structure by name, with errors that say what there is."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.views.labelled_grid import AnyLabelled, home_of
from lundprobe_zarr.views.labelled_tables import missing


def select_structure(data: AnyLabelled, structure: str) -> xr.DataArray:
    """See `lp.structure`."""
    array = _mask_of(data) if isinstance(data, xr.Dataset) else data
    if "structure" not in array.coords:
        raise UsageError(
            f"array {array.name!r} has no coordinate 'structure', only {list(array.coords)}; "
            "expected masks or uncertainty by structure, e.g. `patient.clinical`"
        )
    there = [str(s) for s in np.atleast_1d(array["structure"].values)]
    if structure not in there:
        home = home_of(data)
        where = f"patient {home.patient_id}" if home and home.patient_id else "this array"
        raise missing(structure, there, where)
    return array.sel(structure=structure) if "structure" in array.dims else array


def _mask_of(data: xr.Dataset) -> xr.DataArray:
    if "mask" not in data:
        raise UsageError(
            f"no variable 'mask' among {list(data.data_vars)}; expected a Dataset with one, e.g. "
            "`patient.clinical`; for others select first, e.g. `nnunet.fold_mask.lp.structure(…)`"
        )
    return data["mask"]
