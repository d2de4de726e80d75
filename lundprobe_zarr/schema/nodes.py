"""Checks of a store's root `zarr.json`, before it is used.

A store may come from anywhere. Shapes, chunks and labels determine what is allocated and which
objects are read, codecs what runs on the bytes. Here they are restricted to this schema.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from lundprobe_zarr.geometry.affine import LONGEST_AXIS
from lundprobe_zarr.schema.layout import ARRAY_SPECS, LABEL_ORDER
from lundprobe_zarr.schema.levels import Levels
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.vocabulary.names import is_patient_id

#: Codecs of this schema; some others of Zarr run code that the data contain.
_CODECS = {"sharding_indexed", "bytes", "blosc", "crc32c", "vlen-utf8"}
#: Most bytes of a decoded inner chunk: a hundred times the largest of this schema.
_LARGEST_CHUNK = 1 << 28
#: Most values of an array that is not of volumes: axes, labels, flags, positions.
_LARGEST_SMALL = 1 << 20

_Length = Annotated[int, Field(ge=1, le=LONGEST_AXIS)]
_Row = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


class RootAttributes(BaseModel):
    """Attributes of a store's root group that other code relies on."""

    model_config = ConfigDict(strict=True, extra="ignore")

    patient_id: str
    part: Literal["base", "extended"]
    protocol: Literal["oldAcq", "newAcq"]
    precision: Precision | None = None
    synthetic: bool
    multi_component_structures: list[str]
    multi_component_files: list[str] | None = None
    geometry_matches_csv: bool | None = None
    findings: list[str]
    levels: Levels | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not is_patient_id(self.patient_id):
            raise ValueError("patient_id is no patient id")
        return self


class GroupAttributes(BaseModel):
    """Attributes of a group of a store: its lattice and labels."""

    model_config = ConfigDict(strict=True, extra="ignore")

    affine: Annotated[list[_Row], Field(min_length=4, max_length=4)] | None = None
    shape: Annotated[list[_Length], Field(min_length=3, max_length=3)] | None = None
    labels: dict[str, list[str | int]] = {}

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.affine is None) != (self.shape is None):
            raise ValueError("an affine and a shape belong together")
        if self.affine and abs(np.linalg.det(np.array(self.affine)[:3, :3])) < 1e-12:
            raise ValueError("an affine without three independent axes")
        for dim, labels in self.labels.items():
            known = LABEL_ORDER.get(dim, ())
            if len(set(labels)) < len(labels) or not set(labels) <= set(known):
                raise ValueError(f"labels of {dim} that are not its own, each once")
        return self


class Group(BaseModel):
    """A group's metadata."""

    model_config = ConfigDict(strict=True, extra="ignore")

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: GroupAttributes


class _Chunks(BaseModel):
    chunk_shape: list[Annotated[int, Field(ge=1)]]


class _ChunkGrid(BaseModel):
    configuration: _Chunks


class Array(BaseModel):
    """An array's metadata."""

    model_config = ConfigDict(strict=True, extra="ignore")

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[Annotated[int, Field(ge=0, le=LONGEST_AXIS)]]
    data_type: str
    chunk_grid: _ChunkGrid
    codecs: Annotated[list[dict[str, Any]], Field(min_length=1)]
    dimension_names: list[str]
    attributes: dict[str, Any]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        dims = {len(self.shape), len(self.dimension_names)}
        if len(dims | {len(self.chunk_grid.configuration.chunk_shape)}) > 1:
            raise ValueError("shape, chunks and names of different numbers of dimensions")
        foreign = {name for name in _codecs(self.codecs) if name not in _CODECS}
        if foreign:
            raise ValueError(f"codecs {', '.join(sorted(map(repr, foreign)))}, not of this schema")
        return self


def _codecs(codecs: Any) -> list[Any]:
    """Return the names of codecs, also of those within a shard."""
    names = []
    for codec in codecs:
        names.append(str(codec.get("name")))
        inner = codec.get("configuration", {})
        for key in ("codecs", "index_codecs"):
            names += _codecs(inner.get(key, ()))
    return names


def require_sound(raw: Any) -> None:
    """Require that a store's root metadata is of this schema.

    Raises `ValueError` (pydantic's `ValidationError` is one), `TypeError`, `KeyError` or
    `AttributeError` for anything else.
    """
    RootAttributes.model_validate(raw["attributes"])
    nodes: dict[str, Any] = raw["consolidated_metadata"]["metadata"]
    kinds: dict[str, type[Group | Array]] = {"group": Group, "array": Array}
    sound = {path: kinds[node["node_type"]].model_validate(node) for path, node in nodes.items()}
    for path, node in sound.items():
        group = sound[path.rpartition("/")[0]] if "/" in path else None
        if "/" in path and not isinstance(group, Group):
            raise ValueError(f"{path}: not in a group")
        if isinstance(node, Array) and path not in ARRAY_SPECS:
            if prod(node.shape) > _LARGEST_SMALL:
                raise ValueError(f"{path}: {node.shape} values; expected a few")
        elif isinstance(node, Array) and isinstance(group, Group):
            _require_volumes(path, node, _lattice(path, sound), group.attributes.labels)


def _lattice(path: str, sound: dict[str, Any]) -> list[int]:
    """Return the shape (z, y, x) of the grid of an array of volumes."""
    shape: list[int] | None = sound[ARRAY_SPECS[path].grid].attributes.shape
    if shape is None:
        raise ValueError(f"{path}: its grid has no shape")
    return shape


def _require_volumes(
    path: str, node: Array, lattice: list[int], labels: dict[str, list[str | int]]
) -> None:
    dims = ARRAY_SPECS[path].label_dims
    expected = [*(len(labels[d]) for d in dims), *lattice]
    if node.shape != expected:
        raise ValueError(f"{path}: shape {node.shape}; its labels and grid make it {expected}")
    dtype, chunk = np.dtype(node.data_type), node.codecs[0]["configuration"]["chunk_shape"]
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{path}: type {node.data_type}; expected one of voxels")
    if len(chunk) != len(expected) or not all(isinstance(n, int) and n >= 1 for n in chunk):
        raise ValueError(f"{path}: inner chunks {chunk}; expected a length for each dimension")
    if chunk[: len(dims)] != [1] * len(dims) or prod(chunk) * dtype.itemsize > _LARGEST_CHUNK:
        raise ValueError(f"{path}: inner chunks {chunk}; expected a part of one volume")
