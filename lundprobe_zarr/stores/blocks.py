"""Variables of volumes as dask arrays, cut into chunks anew for every selection.

dask cuts an array into chunks before it knows what is selected of it. A patch of a large volume
is then in several slabs, each with a task and a request of its own, and of selections made one
after another the later ones are applied to whole slabs that were read. Here the volumes are
selected from instead, and what that gives becomes dask's chunks: a patch is one task and one read.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from lundprobe_zarr.stores.lazy import LazyVolumes, SmallArray

#: The volumes that dask arrays are made of, by the arrays' names, as long as their graphs live.
_VOLUMES: WeakValueDictionary[str, LazyVolumes] = WeakValueDictionary()
#: The layers of their graphs. What was computed by `persist` has the name, but another layer.
_LAYERS: WeakValueDictionary[str, Any] = WeakValueDictionary()


def lazy_variable(
    dims: Sequence[Hashable], array: LazyVolumes | SmallArray, attrs: Mapping[str, Any]
) -> xr.Variable:
    """A lazy variable, dask-backed, of an array of a store."""
    name = f"array-{uuid.uuid4()}"
    if isinstance(array, LazyVolumes):
        return VolumesVariable(dims, _dask_array(array, array.blocks(), name), attrs)
    return xr.Variable(dims, _dask_array(array, array.shape, name), attrs)


class VolumesVariable(xr.Variable):
    """A variable that takes selections by integers, slices and one list of its volumes.

    As soon as its data are anything but volumes as they are stored, it is as any variable.
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        """The selection at `key`, as of any variable."""
        # Assigning to voxels changes a dask array in place, but also its name.
        name = str(getattr(self.data, "name", ""))
        volumes, keys = _volumes_of(self.data, name), _keys(key, self.ndim)
        if volumes is None or keys is None:
            return super().__getitem__(key)
        try:
            selected = volumes.selected(keys)
        except IndexError:
            return super().__getitem__(key)  # which says it as xarray does
        selected.expect()
        data = _dask_array(selected, selected.blocks(), f"volumes-{tokenize(name, keys)}")
        dims = [d for d, k in zip(self.dims, keys, strict=True) if not isinstance(k, Integral)]
        return VolumesVariable(dims, data, self.attrs, self.encoding)


def _dask_array(array: Any, chunks: Any, name: str) -> da.Array:
    meta = np.empty((0,) * array.ndim, array.dtype)
    lazy: da.Array = da.from_array(array, chunks, name, inline_array=True, meta=meta)
    if isinstance(array, LazyVolumes):
        _VOLUMES[name] = array
        _LAYERS[name] = lazy.dask.layers[name]
    return lazy


def _volumes_of(data: Any, name: str) -> LazyVolumes | None:
    """The stored volumes that an array reads; None if it is made of anything else."""
    layer = _LAYERS.get(name)
    is_read = layer is not None and data.dask.layers.get(name) is layer
    return _VOLUMES.get(name) if is_read else None


def _keys(key: Any, ndim: int) -> list[Any] | None:
    """A key for each dimension; None if there is anything but integers, slices and one list."""
    keys = list(key) if isinstance(key, tuple) else [key]
    for at in [n for n, one in enumerate(keys) if one is Ellipsis][:1]:
        keys[at : at + 1] = [slice(None)] * (ndim - len(keys) + 1)
    keys += [slice(None)] * (ndim - len(keys))
    kinds = [_kind(one) for one in keys]
    return keys if len(keys) == ndim and all(kinds) and kinds.count("list") < 2 else None


def _kind(key: Any) -> str:
    """What a key is; nothing if it is of another kind."""
    if isinstance(key, slice):
        return "slice"
    if isinstance(key, Integral) and np.asarray(key).dtype.kind != "b":
        return "integer"
    if isinstance(key, list | np.ndarray):
        places = np.asarray(key)
        return "list" if places.ndim == 1 and places.dtype.kind in "iu" else ""
    return ""
