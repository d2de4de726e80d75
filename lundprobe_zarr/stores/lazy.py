"""Arrays of a store that read what is asked of them and nothing before; dask wraps them.

zarr-python takes a missing shard for an empty one and gives zeros. These do not: what the
metadata says is there must be there, whole, with the right checksum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.stores.reader import Part, StoreReader

Array = npt.NDArray[Any]
#: The codecs of a small array: its bytes as they are, and their checksum.
_CODECS = ["bytes", "crc32c"]


class LazyVolumes:
    """An array of volumes (labels…, z, y, x): integers and slices of it are read when taken."""

    def __init__(self, reader: StoreReader, path: str) -> None:
        array = reader.array(path)
        self._reader = reader
        self._path = path
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = len(array.shape)

    def __getitem__(self, key: Any) -> Array:
        """Voxels at `key`: integers, slices, new axes as NumPy has them; lists axis by axis.

        Raises `IndexError` out of bounds, `DamagedStoreError` for a byte missing or wrong.
        """
        keys = list(key) if isinstance(key, tuple) else [key]
        keys += [slice(None)] * (self.ndim - sum(k is not None for k in keys))
        chosen = [k for k in keys if k is not None]
        taken = [np.arange(n)[k] for n, k in zip(self.shape, chosen, strict=True)]
        block = self._read([np.atleast_1d(t) for t in taken])
        rest = iter(0 if t.ndim == 0 else slice(None) for t in taken)
        return block[tuple(None if k is None else next(rest) for k in keys)]

    def _read(self, lines: Sequence[Array]) -> Array:
        """Voxels at the crossings of `lines`, one sequence of places per dimension."""
        shape = tuple(len(line) for line in lines)
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        z, y, x = (slice(int(line.min()), int(line.max()) + 1) for line in lines[-3:])
        places = product(*(line.tolist() for line in lines[:-3]))
        volumes = self._reader.read_parts([Part(self._path, p, (z, y, x)) for p in places])
        inside = [_picked(v, lines[-3:]) for v in volumes]
        return np.stack(inside).reshape(shape)


def _picked(box: Array, lines: Sequence[Array]) -> Array:
    """Voxels of a box (z, y, x) at `lines`, whose extent it is."""
    for axis, line in enumerate(lines):
        if len(line) != box.shape[axis] or (np.diff(line) < 0).any():
            box = box.take(line - line.min(), axis)
    return box


class SmallArray:
    """A flag or position array: one object, read whole when any of it is asked for.

    `node` is the array's metadata out of the store's root `zarr.json`. Raises `KeyError`,
    `TypeError` or `ValueError` if that is not of the kind this schema writes.
    """

    def __init__(self, reader: StoreReader, path: str, node: Mapping[str, Any]) -> None:
        self._reader = reader
        self._path = path
        self.shape = tuple(int(n) for n in node["shape"])
        self.dtype = np.dtype(node["data_type"])
        self.ndim = len(self.shape)
        if [c["name"] for c in node["codecs"]] != _CODECS:
            raise ValueError(f"codecs {node['codecs']}; expected {_CODECS}")
        if tuple(node["chunk_grid"]["configuration"]["chunk_shape"]) != self.shape:
            raise ValueError(f"chunks {node['chunk_grid']}; expected one of shape {self.shape}")

    def __getitem__(self, key: Any) -> Array:
        """Values at `key`; raises as `StoreReader.small_array` does."""
        values: Array = self._reader.small_array(self._path, self.shape, self.dtype)[key]
        return values
