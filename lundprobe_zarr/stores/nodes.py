"""Write nodes of a store with zarr: small arrays, axes, and the codec of volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.dtype import VariableLengthUTF8

from lundprobe_zarr.geometry.affine import FloatArray, axis_coordinates
from lundprobe_zarr.schema.attributes import plain
from lundprobe_zarr.schema.layout import AXIS_ATTRIBUTES
from lundprobe_zarr.stores.shard import ShardCodec


def write_axes(group: zarr.Group, affine: FloatArray, shape: Sequence[int]) -> None:
    """Write the coordinates `z y x` of a grid, mm, LPS; none if it is not aligned."""
    for axis, values in axis_coordinates(affine, shape).items():
        write_small(group, axis, (axis,), values, AXIS_ATTRIBUTES[axis])


def write_small(
    group: zarr.Group,
    name: str,
    dims: Sequence[str],
    values: Any,
    attributes: Mapping[str, Any],
) -> None:
    """Write a small array in one chunk: coordinates, flags, fiducials; text as Zarr's `string`."""
    data = np.asarray(values)
    text = data.dtype.kind in "UOT"
    dtype: Any = VariableLengthUTF8() if text else data.dtype
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=data.shape,
        dtype=dtype,
        dimension_names=list(dims),
        attributes=plain(attributes),
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[...] = data.astype(object) if text else data


def blosc_codec(codec: ShardCodec) -> BloscCodec:
    """Return the codec of an array's inner chunks, as its metadata names it."""
    b = codec.blosc
    return BloscCodec(
        typesize=codec.dtype.itemsize,
        cname=b.cname,
        clevel=b.clevel,
        shuffle=b.shuffle,
        blocksize=codec.chunk_bytes,
    )
