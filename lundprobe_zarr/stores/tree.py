"""A store as a lazy, labelled, dask-backed DataTree, built from its consolidated metadata alone.

xarray's own opener reads every coordinate to build its indexes, some twenty objects. Labels are
repeated in the groups' attributes and axes follow from the affine, so here nothing is read but
one `zarr.json`. A plain `xr.open_datatree` gives an equal tree (tests compare them). Voxels come
through our own reader, which knows a missing or damaged shard when it meets one.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from lundprobe_zarr.geometry.affine import axis_coordinates
from lundprobe_zarr.schema.attributes import AFFINE, SHAPE, present_attributes
from lundprobe_zarr.schema.layout import AXIS_ATTRIBUTES
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.blocks import lazy_variable
from lundprobe_zarr.stores.extensions import load_extensions
from lundprobe_zarr.stores.lazy import LazyVolumes, SmallArray
from lundprobe_zarr.stores.metadata import UNSOUND, StoreMetadata, unsound
from lundprobe_zarr.stores.opening import read_verified_store
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import AXES, MODALITY_UNITS

Nodes = Mapping[str, Mapping[str, Any]]


def _text_type() -> np.dtype[Any]:
    """NumPy's own texts, where xarray finds an array of them equal to itself: from 2026.1 on."""
    text: np.dtype[Any] = np.dtypes.StringDType()
    one = xr.DataArray(np.array(["a"], text))
    return text if one.equals(one.copy(deep=True)) else np.dtype(object)


#: Type of arrays of labels.
TEXT = _text_type()


def open_tree(location: Location, patient_id: str) -> xr.DataTree:
    """The patient's store. Selections of a variable by labels and box, in any order, are one box.

    What is selected is one dask chunk, up to `stores.lazy`'s limit, and slabs of slices beyond it.
    One request. Raises `DamagedStoreError` if the store is missing or its metadata unsound, and
    so does whatever reads voxels from the tree later, for a shard that is missing or damaged.
    """
    load_extensions()
    metadata, text = read_verified_store(location, patient_id)
    where = metadata.where
    reader = StoreReader(location, metadata)
    try:
        document = json.loads(text)
        nodes = _present(document["consolidated_metadata"]["metadata"])
        datasets = {f"/{path}": _dataset(reader, nodes, path) for path in metadata.groups}
        root = xr.Dataset(attrs=present_attributes("", document))
        return xr.DataTree.from_dict({"/": root} | datasets)
    except UNSOUND as error:
        raise unsound(where, error) from error


def _present(nodes: Nodes) -> Nodes:
    """Nodes of a store with attributes as the present schema has them, which can be saved."""
    return {p: {**node, "attributes": present_attributes(p, node)} for p, node in nodes.items()}


def _dataset(reader: StoreReader, nodes: Nodes, path: str) -> xr.Dataset:
    metadata = reader.metadata
    here = {p.rpartition("/")[2]: n for p, n in nodes.items() if p.rpartition("/")[0] == path}
    arrays = {name: node for name, node in here.items() if node["node_type"] == "array"}
    coords = _coordinates(metadata, path, arrays)
    variables = {
        name: _variable(reader, f"{path}/{name}", node)
        for name, node in arrays.items()
        if name not in coords
    }
    return xr.Dataset(variables, coords, nodes[path]["attributes"])


def _coordinates(metadata: StoreMetadata, path: str, arrays: Nodes) -> dict[Hashable, xr.Variable]:
    attributes = metadata.groups[path]
    coords: dict[Hashable, xr.Variable] = {}
    if AFFINE in attributes:
        axes = axis_coordinates(attributes[AFFINE], attributes[SHAPE])
        coords |= {a: xr.Variable((a,), v, AXIS_ATTRIBUTES[a]) for a, v in axes.items()}
    labels = metadata.labels(path) | ({"axis": list(AXES)} if "axis" in arrays else {})
    for dim, values in labels.items():
        coords[dim] = xr.Variable((dim,), _label_array(values), dict(arrays[dim]["attributes"]))
    if "modality" in labels:
        units = [MODALITY_UNITS[m] for m in labels["modality"]]
        about = dict(arrays["unit"]["attributes"])
        coords["unit"] = xr.Variable(("modality",), _label_array(units), about)
    return coords


def _label_array(values: list[Any]) -> Any:
    if any(isinstance(v, str) for v in values):
        return np.array(values, dtype=TEXT)
    return np.array(values, dtype=np.int64)


def _variable(reader: StoreReader, path: str, node: Mapping[str, Any]) -> xr.Variable:
    array: LazyVolumes | SmallArray
    if path in reader.metadata.arrays:
        array = LazyVolumes(reader, path)
    else:
        array = SmallArray(reader, path, node)
    attributes = {k: v for k, v in node["attributes"].items() if k != "coordinates"}
    return lazy_variable(node["dimension_names"], array, attributes)
