"""Coarser levels of a store: derived arrays for viewers, which readers do not take for data.

The levels of `/mri/image` are `/mri/levels/1/image`, halved along y and x, `/mri/levels/2/image` …
The root's attribute `levels` holds their number, and the size and SHA-256 of their shards. Their
metadata follow from those of level 0. The root's consolidated metadata do not list them, so
opening a store does not show them; those of their own group do, for readers of OME-Zarr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lundprobe_zarr.geometry.affine import LONGEST_AXIS
from lundprobe_zarr.geometry.coarser import coarser_shape
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.schema.attributes import AFFINE, LEVELS, OME, SHAPE, plain, structured_nodes
from lundprobe_zarr.schema.encoding import inner_chunk, shard_shape
from lundprobe_zarr.schema.layout import AFFINE_FRAME, CONVENTIONS, ArraySpec
from lundprobe_zarr.schema.ome import level_method, level_path, ome_arrays, ome_attributes
from lundprobe_zarr.schema.records import SOURCES
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS

#: Most levels: beyond them the longest axis would be a single voxel.
MOST_LEVELS = LONGEST_AXIS.bit_length() - 1

_Node = Mapping[str, Any]
_Nodes = Mapping[str, _Node]


class Levels(BaseModel):
    """Attribute of the root: number of levels, and bytes and SHA-256 of each shard by its key.

    An all-zero volume has no shard.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    count: Annotated[int, Field(ge=1, le=MOST_LEVELS)]
    shards: dict[
        str, tuple[Annotated[int, Field(ge=1)], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    ]


def levels_of(attributes: Mapping[str, Any]) -> Levels | None:
    """Return the levels of a store from the structured attributes of its root; None without."""
    attribute = attributes.get(LEVELS)
    return None if attribute is None else Levels.model_validate(attribute)


def level_grid(affine: Any, shape: Sequence[int], level: int) -> Grid:
    """Return the lattice of a level of a grid: the centres of its voxels, mm."""
    z, y, x = shape
    factor = float(2**level)
    start = np.array([0.0, (factor - 1) / 2, (factor - 1) / 2])
    whole = Grid(np.asarray(affine, np.float64), (z, y, x))
    return whole.stepped(start, np.array([1.0, factor, factor]), coarser_shape((z, y, x), level))


def level_nodes(root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metadata of all levels' groups and arrays by path; empty without levels.

    `root` is the store's root metadata. Raises as `schema.nodes.require_sound` does for metadata
    that is not of this schema.
    """
    known = structured_nodes(root)
    levels = levels_of(known["attributes"])
    if levels is None:
        return {}
    raw, nodes = (r["consolidated_metadata"]["metadata"] for r in (root, known))
    found: dict[str, dict[str, Any]] = {}
    for group in (path for path, node in nodes.items() if node["node_type"] == "group"):
        specs = ome_arrays(group, nodes)
        if specs:
            title = f"coarser levels of /{group}, made of it for viewers"
            found[f"{group}/{LEVELS}"] = _group(raw[group], {"title": title})
        for level in range(1, levels.count + 1) if specs else ():
            found |= _level(group, specs, raw, nodes, level)
    return found


def whole_metadata(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return the consolidated metadata of a store, with entries that only groups' own files have.

    These are the attribute `ome` of groups, and the nodes of levels, if the store has any.
    """
    consolidated = root["consolidated_metadata"]
    nodes = {**consolidated["metadata"], **level_nodes(root)}
    for path, ome in ome_attributes(root).items():
        nodes[path] = {**nodes[path], "attributes": {**nodes[path]["attributes"], OME: ome}}
    # As zarr-python writes and reads them: a group before what it holds.
    ordered = dict(sorted(nodes.items(), key=lambda n: (n[0].count("/"), n[0])))
    return {**consolidated, "metadata": ordered}


def _group(like: _Node, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**like, "attributes": plain({"Conventions": CONVENTIONS, **attributes})}


def _level(
    group: str, specs: Sequence[ArraySpec], raw: _Nodes, nodes: _Nodes, level: int
) -> dict[str, dict[str, Any]]:
    """Return the group and the arrays of one level."""
    of_grid = nodes[specs[0].grid]["attributes"]
    grid = level_grid(of_grid[AFFINE], of_grid[SHAPE], level)
    labels = nodes[group]["attributes"].get("labels", {})
    dims = [dim for spec in specs for dim in spec.label_dims]
    about = {
        "title": f"level {level} of /{group}: {2**level}×{2**level} voxels of a slice as one",
        "derived_from": f"/{group}",
        "level": level,
        AFFINE: grid.affine.tolist(),
        "affine_frame": AFFINE_FRAME,
        SHAPE: list(grid.shape),
        "labels": {dim: labels[dim] for dim in dims},
    }
    base = f"{group}/{LEVELS}/{level}"
    found = {base: _group(raw[group], about)}
    for axis, length in zip(SPATIAL_DIMS, grid.shape, strict=True):
        found[f"{base}/{axis}"] = _resized(raw[f"{specs[0].grid}/{axis}"], [length])
    for name in dict.fromkeys(d for d in (*dims, "unit") if f"{group}/{d}" in raw):
        found[f"{base}/{name}"] = dict(raw[f"{group}/{name}"])
    for spec in specs:
        path = f"{group}/{level_path(spec.variable, level)}"
        found[path] = _volumes(raw[spec.path], spec, grid.shape, level)
    return found


def _resized(node: _Node, shape: list[int]) -> dict[str, Any]:
    """Return the metadata of a small array, one chunk, of another shape."""
    grid = {**node["chunk_grid"], "configuration": {"chunk_shape": shape}}
    return {**node, "shape": shape, "chunk_grid": grid}


def _volumes(
    node: _Node, spec: ArraySpec, shape: tuple[int, int, int], level: int
) -> dict[str, Any]:
    """Return the metadata of a level of an array of volumes: same labels, type and filter."""
    of_labels, ones = node["shape"][:-3], [1] * len(spec.label_dims)
    chunk = [*ones, *inner_chunk(shape)]
    sharding = node["codecs"][0]
    block = {"blocksize": int(np.prod(chunk)) * np.dtype(node["data_type"]).itemsize}
    inner = [
        {**c, "configuration": {**c["configuration"], **block}} if c["name"] == "blosc" else c
        for c in sharding["configuration"]["codecs"]
    ]
    inside = {**sharding["configuration"], "chunk_shape": chunk, "codecs": inner}
    about = {k: v for k, v in node["attributes"].items() if k != SOURCES}
    made = {
        "derived_from": f"/{spec.path}",
        "level": level,
        "method": f"{level_method(spec)} of {2**level}×{2**level} voxels of a slice",
    }
    return {
        **_resized(node, [*of_labels, *shape]),
        "chunk_grid": {
            **node["chunk_grid"],
            "configuration": {"chunk_shape": [*ones, *shard_shape(shape)]},
        },
        "codecs": [{**sharding, "configuration": inside}],
        "attributes": about | made,
    }
