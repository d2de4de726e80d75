"""Many patients in one labelled object: a tree of stores, or volumes on one common grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.geometry.common_grid import CommonGrid
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.resample import needed, resample_to
from lundprobe_zarr.labelled.select import select_structure
from lundprobe_zarr.labelled.tables import centroids
from lundprobe_zarr.schema.layout import AXIS_ATTRIBUTES, CONVENTIONS
from lundprobe_zarr.stores.tree import TEXT
from lundprobe_zarr.vocabulary.names import AXES, MODALITY_UNITS, SPATIAL_DIMS, STRUCTURES
from lundprobe_zarr.vocabulary.suggest import require_structure

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort, Patient

#: Stores opened in parallel for a tree: each takes one request, which is mostly waiting.
_OPENED_AT_ONCE = 16


def cohort_tree(cohort: Cohort) -> xr.DataTree:
    """Return a tree with each patient's lazy tree as a child, by patient id; see `to_xarray`."""
    patients = list(cohort)
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        trees = list(pool.map(lambda patient: patient.tree, patients))
    return xr.DataTree(
        children={p.patient_id: tree for p, tree in zip(patients, trees, strict=True)}
    )


def cohort_on_grid(
    cohort: Cohort,
    grid: CommonGrid,
    structures: Sequence[str] | None,
    columns: Sequence[str],
    fill: float,
) -> xr.Dataset:
    """Return all patients on one grid; see `to_xarray`. Opens no store before computing."""
    if not isinstance(grid, CommonGrid):
        raise UsageError(f"grid is {grid!r}", expected="a CommonGrid(spacing_mm=…, shape=…)")
    names = STRUCTURES if structures is None else _names(structures)
    patients = list(cohort)
    centres = _centres(cohort, grid.centre)
    blocks = partial(_Blocks, patients, [grid.about(c) for c in centres], fill)
    modalities, present = list(MODALITY_UNITS), _present(cohort, names)
    variables = {
        "image": blocks("image", "modality", modalities).lazy(),
        "dose": blocks("dose").lazy(),
        "mask": blocks("mask", "structure", names, present).lazy(),
        "present": (("patient", "structure"), present, _PRESENT_ATTRIBUTES),
    }
    return xr.Dataset(
        variables,
        _coordinates(cohort, grid, centres, columns)
        | {
            "modality": np.array(modalities, dtype=TEXT),
            "unit": ("modality", np.array(list(MODALITY_UNITS.values()), dtype=TEXT)),
            "structure": np.array(names, dtype=TEXT),
        },
        {"Conventions": CONVENTIONS, "title": f"a cohort about the centroid of {grid.centre}"},
    )


def _names(structures: Sequence[str]) -> tuple[str, ...]:
    names = (structures,) if isinstance(structures, str) else tuple(structures)
    for name in names:
        require_structure(name)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"structures={structures!r}", expected="at least one, no duplicates")
    return names


_PRESENT_ATTRIBUTES = {
    "long_name": "whether the patient has the mask; where not, it is all False on purpose"
}
_VARIABLE_ATTRIBUTES = {
    "image": {"long_name": "image, linearly interpolated"},
    "dose": {"units": "Gy", "long_name": "planned dose, linearly interpolated"},
    "mask": {"units": "1", "long_name": "clinical delineation, where it fills half a voxel"},
}


def _centres(cohort: Cohort, structure: str) -> list[list[float]]:
    patients, known = cohort.ids, centroids(cohort, structure)
    lacking = [patient for patient in patients if patient not in known]
    if lacking:
        raise MissingStructureError(
            f"{len(lacking)} of {len(patients)} patients have no {structure} to "
            f"centre on: {', '.join(lacking[:3])} …",
            expected="all to have it",
            remedy=(
                f'leave them out with `cohort.where("NOT missing_{structure}")`, '
                "or choose another `centre`"
            ),
        )
    return [list(known[patient]) for patient in patients]


def _present(cohort: Cohort, structures: Sequence[str]) -> npt.NDArray[np.bool_]:
    missing = cohort.patients[[f"missing_{s}" for s in structures]]
    return ~missing.to_numpy(dtype=bool)


def _coordinates(
    cohort: Cohort, grid: CommonGrid, centres: list[list[float]], columns: Sequence[str]
) -> dict[str, Any]:
    table = cohort.patients
    unknown = [c for c in columns if c not in table.columns]
    if unknown:
        raise UnknownLabelError(
            f"no column {unknown[0]!r} in the patients table",
            remedy=f"it has {', '.join(table.columns)}",
        )
    coords: dict[str, Any] = {
        name: ("patient", _column(table[name])) for name in ("patient_id", *columns)
    }
    coords["patient"] = coords.pop("patient_id")
    for dim, values in grid.axes().items():
        about = {"long_name": f"{AXIS_ATTRIBUTES[dim]['long_name']}, from the centre"}
        coords[dim] = ((dim,), values, AXIS_ATTRIBUTES[dim] | about)
    about = {"units": "mm", "long_name": f"centroid of {grid.centre}, LPS"}
    coords["centre"] = (("patient", "axis"), np.array(centres)[:, ::-1], about)
    coords["axis"] = np.array(AXES, dtype=TEXT)
    return coords


def _column(values: Any) -> npt.NDArray[Any]:
    array = np.asarray(values.to_numpy())
    is_text = array.dtype.kind == "O" and all(isinstance(v, str) for v in array)
    return array.astype(TEXT) if is_text else array


@dataclass(frozen=True)
class _Blocks:
    """The input of computing a variable's volumes: patients, grids, variable and labels.

    `there` (patient, label) flags volumes that exist by the tables; None if only the stores know.
    """

    patients: Sequence[Patient]
    grids: Sequence[Grid]
    fill: float
    variable: str
    dim: str | None = None
    labels: Sequence[str] = ()
    there: npt.NDArray[np.bool_] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels: bool for masks, else float32."""
        return np.dtype(bool if self.variable == "mask" else np.float32)

    def lazy(self) -> tuple[tuple[str, ...], Any, Mapping[str, str]]:
        """Return the variable (patient, `dim`, z, y, x) with one task per volume."""
        dims = ("patient", *([self.dim] if self.dim else []), *SPATIAL_DIMS)
        counts = (len(self.patients), *([len(self.labels)] if self.dim else []))
        array = da.map_blocks(
            self.volume,
            chunks=(*((1,) * n for n in counts), *((n,) for n in self.grids[0].shape)),
            dtype=self.dtype,
            meta=np.empty((0,) * len(dims), self.dtype),
            # an explicit name: hashing patients would pickle them
            name=f"{self.variable}-{uuid4().hex}",
        )
        return dims, array, _VARIABLE_ATTRIBUTES[self.variable]

    def volume(self, block_id: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the values of one block (1, …, z, y, x)."""
        place = block_id[:-3]
        shape = (1,) * len(place) + self.grids[place[0]].shape
        volume = self._volume(place) if self.there is None or self.there[place] else None
        if volume is None:
            return np.full(shape, False if self.dtype.kind == "b" else np.nan, self.dtype)
        # this is inside a task: more threads would only wait for each other
        with dask.config.set(scheduler="synchronous"):
            values = resample_to(volume, self.grids[place[0]], fill=self.fill).values
        return values.astype(self.dtype, copy=False).reshape(shape)

    def _volume(self, place: tuple[int, ...]) -> xr.DataArray | None:
        """Return the part of the stored volume that the grid covers; None if it does not exist."""
        patient = self.patients[place[0]]
        data = patient.clinical if self.variable == "mask" else patient.mri
        if self.variable not in data:
            return None
        array = needed(data[self.variable], self.grids[place[0]])
        if self.dim is None:
            return array
        label = self.labels[place[1]]
        if self.variable == "mask":
            return select_structure(array, label)
        return array.sel({self.dim: label}) if label in array[self.dim].values else None
