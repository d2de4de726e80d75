"""Arrays of a store that read what is asked of them and nothing before; dask wraps them.

zarr-python takes a missing shard for an empty one and gives zeros. These do not: what the
metadata says is there must be there, whole, with the right checksum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.stores.reader import Part, StoreReader

Array = npt.NDArray[Any]
#: Places along a dimension; an integer is one, and no dimension any more.
Line = range | int | npt.NDArray[np.intp]
#: Voxels of a dask chunk, at most, but for one slab of a shard's chunks: that is 8 slices of
#: 1024 × 1024, 32 MiB of float32. What is larger is decoded by more than one task.
_BLOCK_VOXELS = 8 * 1024 * 1024
#: Volumes that a selection may have to be expected. One of more has all labels there are, and does
#: not say which of them are wanted.
_FEW_VOLUMES = 4
#: The codecs of a small array: its bytes as they are, and their checksum.
_CODECS = ["bytes", "crc32c"]


class LazyVolumes:
    """An array of volumes (labels…, z, y, x), or a selection of one, read when it is indexed.

    `lines` are the places selected along each dimension of the stored array, all by default; an
    integer drops its dimension.
    """

    def __init__(self, reader: StoreReader, path: str, lines: Sequence[Line] | None = None) -> None:
        array = reader.array(path)
        self._reader = reader
        self._path = path
        self._lines = tuple(range(n) for n in array.shape) if lines is None else tuple(lines)
        self.shape = tuple(len(line) for line in self._lines if not isinstance(line, int))
        self.dtype = array.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> Array:
        """Voxels at `key`: integers, slices, new axes as NumPy has them; lists axis by axis.

        Raises `IndexError` out of bounds, `DamagedStoreError` for a byte missing or wrong.
        """
        keys = list(key) if isinstance(key, tuple) else [key]
        keys += [slice(None)] * (self.ndim - sum(k is not None for k in keys))
        block = self.selected([k for k in keys if k is not None])._read()
        new = [k for k in keys if not isinstance(k, Integral)]
        return block[tuple(None if k is None else slice(None) for k in new)]

    def selected(self, keys: Sequence[Any]) -> LazyVolumes:
        """The selection at `keys`, one per dimension: an integer, a slice, or a list of places.

        Nothing is read. Raises `IndexError` out of bounds.
        """
        rest = iter(keys)
        lines = [
            line if isinstance(line, int) else _taken(line, next(rest)) for line in self._lines
        ]
        return LazyVolumes(self._reader, self._path, lines)

    def expect(self) -> None:
        """Say that this selection may be read soon: see `StoreReader.expect`."""
        if math.prod(_length(line) for line in self._lines[:-3]) <= _FEW_VOLUMES:
            self._reader.expect(self, self._parts())

    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Lengths of dask's chunks along each dimension.

        What has no more than `_BLOCK_VOXELS` is one chunk. Of more, a chunk is of one volume and of
        as many slices as that allows. No two then decode the same chunk of a shard.
        """
        if math.prod(self.shape) <= _BLOCK_VOXELS:
            return tuple((n,) for n in self.shape)
        *labels, z, y, x = self._lines
        ones = [(1,) * len(line) for line in labels if not isinstance(line, int)]
        depth = self._reader.array(self._path).chunk[0]
        slabs = [] if isinstance(z, int) else [_slabs(z, _length(y) * _length(x), depth)]
        return (*ones, *slabs, *((len(line),) for line in (y, x) if not isinstance(line, int)))

    def _read(self) -> Array:
        """Voxels of the selection."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        volumes = self._reader.read_parts(self._parts())
        lines = [_places(line) for line in self._lines[-3:]]
        return np.stack([_picked(v, lines) for v in volumes]).reshape(self.shape)

    def _parts(self) -> list[Part]:
        """The smallest box of each volume that the selection is in."""
        *labels, z, y, x = (_places(line) for line in self._lines)
        box = (_extent(z), _extent(y), _extent(x))
        return [Part(self._path, p, box) for p in product(*(line.tolist() for line in labels))]


def _taken(line: Line, key: Any) -> Line:
    """The places that `key` takes of those of a dimension."""
    if isinstance(line, range) and isinstance(key, slice | Integral):
        return line[key]
    taken = _places(line)[key]
    return int(taken) if taken.ndim == 0 else taken


def _places(line: Line) -> npt.NDArray[np.intp]:
    if isinstance(line, range):
        return np.arange(line.start, line.stop, line.step)
    return np.atleast_1d(np.asarray(line, np.intp))


def _length(line: Line) -> int:
    return 1 if isinstance(line, int) else len(line)


def _extent(places: npt.NDArray[np.intp]) -> slice:
    return slice(int(places.min()), int(places.max()) + 1) if places.size else slice(0, 0)


def _slabs(line: Line, area: int, depth: int) -> tuple[int, ...]:
    """Numbers of slices, of `area` voxels, in dask's chunks along z; `depth` is that of a shard's.

    They are cut where chunks of the shard end, at the same slices whatever the selection begins at.
    """
    if _length(line) * area <= _BLOCK_VOXELS:
        return (_length(line),)
    slab = _places(line) // (max(1, _BLOCK_VOXELS // (area * depth)) * depth)
    ends = [0, *(np.flatnonzero(np.diff(slab)) + 1).tolist(), len(slab)]
    return tuple(stop - start for start, stop in pairwise(ends))


def _picked(box: Array, lines: Sequence[Array]) -> Array:
    """Voxels of a box (z, y, x) at `lines`, whose extent it is."""
    for axis, line in enumerate(lines):
        if (np.diff(line) != 1).any():
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
