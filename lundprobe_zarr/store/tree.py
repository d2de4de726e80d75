"""A store as a lazy, labelled, dask-backed DataTree, built from its consolidated metadata alone.

xarray's own opener reads every coordinate to build its indexes, some twenty objects. Labels are
repeated in the groups' attributes and axes follow from the affine, so here nothing is read but
one `zarr.json`. A plain `xr.open_datatree` gives an equal tree (tests compare them).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from lundprobe_zarr.schema.layout import AXIS_ATTRIBUTES
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.store.dataset import open_store
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.geometry import axis_coordinates
from lundprobe_zarr.vocabulary.names import AXES, MODALITY_UNITS


def open_tree(location: Location, patient_id: str) -> xr.DataTree:
    """The patient's store; dask chunks are slabs of slices, one volume deep in the labels.

    Raises `DamagedStoreError` if the store is missing or its metadata unsound.
    """
    metadata = open_store(location, patient_id)
    root = zarr.open_group(location.zarr_store(store_path(patient_id)), mode="r")
    datasets = {f"/{path}": _dataset(root, metadata, path) for path in metadata.groups}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=metadata.attributes)} | datasets)


def _dataset(root: zarr.Group, metadata: StoreMetadata, path: str) -> xr.Dataset:
    group = root[path]
    assert isinstance(group, zarr.Group)
    arrays = {name: node for name, node in group.members() if isinstance(node, zarr.Array)}
    coords = _coordinates(metadata, path, arrays)
    variables = {n: _variable(a) for n, a in arrays.items() if n not in coords}
    return xr.Dataset(variables, coords, metadata.groups[path])


def _coordinates(
    metadata: StoreMetadata, path: str, arrays: Mapping[str, zarr.Array[Any]]
) -> dict[Hashable, xr.Variable]:
    attributes = metadata.groups[path]
    coords: dict[Hashable, xr.Variable] = {}
    if "affine" in attributes:
        axes = axis_coordinates(attributes["affine"], attributes["shape"])
        coords |= {a: xr.Variable((a,), v, AXIS_ATTRIBUTES[a]) for a, v in axes.items()}
    labels = metadata.labels(path) | ({"axis": list(AXES)} if "axis" in arrays else {})
    for dim, values in labels.items():
        coords[dim] = xr.Variable((dim,), _label_array(values), dict(arrays[dim].attrs))
    if "modality" in labels:
        units = [MODALITY_UNITS[m] for m in labels["modality"]]
        coords["unit"] = xr.Variable(("modality",), _label_array(units), dict(arrays["unit"].attrs))
    return coords


def _label_array(values: list[Any]) -> Any:
    if any(isinstance(v, str) for v in values):
        return np.array(values, dtype=np.dtypes.StringDType())
    return np.array(values, dtype=np.int64)


def _variable(array: zarr.Array[Any]) -> xr.Variable:
    dims = getattr(array.metadata, "dimension_names", None) or ()
    chunks = tuple(
        n if d in ("y", "x") else c for d, c, n in zip(dims, array.chunks, array.shape, strict=True)
    )
    lazy = da.from_array(array, chunks=chunks, name=False, inline_array=True)
    attributes = {k: v for k, v in array.attrs.items() if k != "coordinates"}
    return xr.Variable(dims, lazy, attributes)
