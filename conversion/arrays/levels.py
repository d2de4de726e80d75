"""Write the coarser levels of a store's volumes, computed from its verified shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.conversion.arrays.shards import compare_shard, put_shard
from lundprobe_zarr.dataset.objects import ROOT
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import axis_coordinates
from lundprobe_zarr.geometry.coarser import coarser, coarser_shape
from lundprobe_zarr.schema.attributes import AFFINE, LEVELS, SHAPE, structured
from lundprobe_zarr.schema.document import crc32c
from lundprobe_zarr.schema.levels import level_nodes
from lundprobe_zarr.schema.ome import level_step
from lundprobe_zarr.stores.metadata import VolumeArray, parse_store
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS


def require_room(shape: tuple[int, int, int], levels: int, where: str) -> None:
    """Require that a slice of a grid of `shape` (z, y, x) can be halved `levels` times."""
    y, x = shape[1:]
    if min(y, x) >> levels < 1:
        raise UsageError(
            f"--levels {levels}: a slice of {y}×{x} voxels has none left when halved so often",
            where=where,
            expected=f"at most {min(y, x).bit_length() - 1}",
        )


def write_levels(folder: Path, root: dict[str, Any], count: int) -> None:
    """Write `count` coarser levels of all volumes that OME-Zarr can describe; list them in `root`.

    `root` is the store's root metadata, which gets the attribute `levels`. `write_metadata` writes
    the metadata of groups. Shards are read back and compared, like those of level 0.
    """
    said: dict[str, Any] = {"count": count, "shards": {}}
    root["attributes"][LEVELS] = json.dumps(said)
    place = StorePlace(str(folder), root["attributes"]["patient_id"])
    store = parse_store(json.dumps(root), place)
    for array, record, key in store.shards():
        if array.spec.path in store.levelled and record.stored_bytes:
            levels = _volumes(array, folder / key, count)
            shards = (s for s in store.level_shards() if s.record is record)
            for shard, volume in zip(shards, levels, strict=True):
                codec, file = array.level_codec(shard.level), folder / shard.key
                size, sha256 = put_shard(file, codec, volume, None)
                compare_shard(file, codec, volume, None, shard.key)
                if size:
                    said["shards"][shard.key] = [size, sha256]
    root["attributes"][LEVELS] = json.dumps(said)
    nodes = level_nodes(root)
    for path, node in nodes.items():
        _write_node(folder, path, node)
    _write_axes(folder, nodes)


def _volumes(array: VolumeArray, shard: Path, count: int) -> list[npt.NDArray[Any]]:
    """Return the levels of a volume, computed from a few slices of its shard at a time."""
    shape = array.volume_shape
    levels = [np.zeros(coarser_shape(shape, n), array.dtype) for n in range(1, count + 1)]
    for z, slices in _slabs(array.codec, shard):
        for level, volume in enumerate(levels, 1):
            volume[z] = coarser(slices, level, level_step(array.spec))
    return levels


def _slabs(codec: ShardCodec, shard: Path) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield the slices of a shard that are not all zero, a row of inner chunks at a time."""
    with shard.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        chunks = codec.decode(read, os.fstat(file.fileno()).st_size)
        for (start, stop), row in groupby(chunks, lambda c: (c[0][0].start, c[0][0].stop)):
            slices = np.zeros((stop - start, *codec.shape[1:]), codec.dtype)
            some = False
            for (_, y, x), chunk in row:
                if chunk is not None:
                    slices[:, y, x] = chunk
                    some = True
            if some:
                yield slice(start, stop), slices


def _write_node(folder: Path, path: str, node: Mapping[str, Any]) -> None:
    """Write the metadata of an array of a level, and for a small array also its values."""
    if node["node_type"] == "group":
        return
    (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / path / ROOT).write_text(json.dumps(node, indent=2))
    if "derived_from" in node["attributes"]:
        return
    (folder / path / "c").mkdir()
    name = path.rpartition("/")[2]
    group = path.partition(f"/{LEVELS}/")[0]
    at = group.partition("/")[0] if name in SPATIAL_DIMS else group
    shutil.copyfile(folder / at / name / "c/0", folder / path / "c/0")


def _write_axes(folder: Path, nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the coordinates `y` and `x` of every group of a level."""
    for path, node in nodes.items():
        attributes = structured(node["attributes"])
        if node["node_type"] == "group" and AFFINE in attributes:
            axes = axis_coordinates(attributes[AFFINE], attributes[SHAPE])
            for axis in ("y", "x"):
                data = np.ascontiguousarray(axes[axis], "<f8").tobytes()
                (folder / path / axis / "c/0").write_bytes(data + crc32c(data))
