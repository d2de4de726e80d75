"""Selection by label, with errors that list the labels of the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.labelled.grid import AnyLabelled, Labelled, home_of
from lundprobe_zarr.labelled.tables import missing
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.vocabulary.files import Label


def select_labels(data: Labelled, labels: Mapping[str, Label | Sequence[Label]]) -> Labelled:
    """Select by label; see `lp.select`."""
    for dim, label in labels.items():
        if dim not in LABEL_ORDER or dim not in data.coords:
            there = [d for d in LABEL_ORDER if d in data.coords]
            raise UsageError(
                f"no labels {dim!r} here",
                expected=f"one of {', '.join(there) or 'none'}",
                remedy="select positions with `.sel`",
            )
        present = np.atleast_1d(data[dim].values).tolist()
        for wanted in np.atleast_1d(np.asarray(label)).tolist():
            if wanted not in present:
                raise missing(dim, wanted, present, _owner(data))
    return data.sel({dim: label for dim, label in labels.items() if dim in data.dims})


def _owner(data: AnyLabelled) -> str:
    home = home_of(data)
    return f"patient {home.patient_id}" if home and home.patient_id else "this array"


def select_structure(data: AnyLabelled, structure: str) -> xr.DataArray:
    """Select a structure; see `lp.structure`."""
    array = _mask_of(data) if isinstance(data, xr.Dataset) else data
    if "structure" not in array.coords:
        raise UsageError(
            f"array {array.name!r} has no coordinate 'structure', only {list(array.coords)}",
            expected="masks or uncertainty by structure, e.g. `patient.clinical`",
        )
    return select_labels(array, {"structure": structure})


def _mask_of(data: xr.Dataset) -> xr.DataArray:
    if "mask" not in data:
        raise UsageError(
            f"no variable 'mask' among {list(data.data_vars)}",
            expected="a Dataset with one, e.g. `patient.clinical`",
            remedy="for others select first, e.g. `nnunet.fold_mask.lp.structure(…)`",
        )
    return data["mask"]
