"""Attributes in the form of stores and opened data, and in the form that our code works with.

netCDF supports numbers, text and rows of numbers. Attributes of schema 2, and of opened data of
either schema, keep to these, so that data can be saved: an affine is a row of sixteen numbers, a
flag is 0 or 1, None is left out, and lists and objects are JSON text. Schema 1 had them as JSON.
The one exception is `ome`, an object of OME-Zarr, in groups' own metadata only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.schema.layout import (
    AFFINE_FRAME,
    ARRAY_SPECS,
    AXIS_ATTRIBUTES,
    CONVENTIONS,
    SCHEMA_VERSION,
)
from lundprobe_zarr.schema.records import SOURCES

#: Attributes of opened data that say where voxels lie; `shape` is (z, y, x).
AFFINE, SHAPE, STORED_GRID = "affine", "shape", "stored_grid"
#: Attribute of groups that is for readers of OME-Zarr: see `schema.ome`.
OME = "ome"
#: Attribute of the root about coarser levels: see `schema.levels`.
LEVELS = "levels"
#: Attributes that are lists or objects, kept as JSON text.
_DOCUMENTS = (
    *("labels", SOURCES, "findings", "multi_component_structures", "multi_component_files"),
    *(STORED_GRID, LEVELS),
)
#: Attributes of the root that are left out where they are empty.
_OPTIONAL = {"precision": None, "geometry_matches_csv": None, "multi_component_files": None}
_FLAGS = ("synthetic", "headers_stripped", "geometry_matches_csv")


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes in the form of netCDF, without `ome`; those in that form stay."""
    kept = {n: value for n, value in attributes.items() if value is not None and n != OME}
    return {n: _plain(n, value) for n, value in kept.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if name == AFFINE:
        return [float(number) for number in np.ravel(value)]
    if isinstance(value, dict) or (isinstance(value, list) and not _is_row(value)):
        return json.dumps(value, ensure_ascii=False)
    return value


def _is_row(value: Iterable[Any]) -> bool:
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in value]
    return bool(numbers) and all(numbers)


def structured(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes, plain or of schema 1, as lists, objects and booleans.

    `affine` is nested lists, 4×4. Values of another form stay, for `schema.nodes` to refuse.
    Raises `ValueError` for text that should be JSON and is not.
    """
    return {name: _structured(name, value) for name, value in attributes.items()}


def _structured(name: str, value: Any) -> Any:
    if name in _DOCUMENTS and isinstance(value, str):
        return parse_json(value)
    if name in _FLAGS and type(value) is int and value in (0, 1):
        return bool(value)
    if name == AFFINE and isinstance(value, list) and len(value) == 16 and _is_row(value):
        return [value[row : row + 4] for row in range(0, 16, 4)]
    return value


def structured_nodes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a store's root metadata with `structured` attributes of every node; `raw` stays."""
    consolidated = raw["consolidated_metadata"]
    nodes = {p: _with(n, structured(n["attributes"])) for p, n in consolidated["metadata"].items()}
    return {
        **_with(raw, _OPTIONAL | structured(raw["attributes"])),
        "consolidated_metadata": {**consolidated, "metadata": nodes},
    }


def _with(node: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**node, "attributes": attributes}


def present_attributes(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes of the node at `path`, of any schema, as the present schema writes them.

    `path` is empty for the root, whose `schema_version` is kept.
    """
    found = plain(node["attributes"])
    if node["node_type"] == "group":
        frame = {"affine_frame": AFFINE_FRAME} if AFFINE in found else {}
        return {"Conventions": CONVENTIONS} | found | frame
    spec = ARRAY_SPECS.get(path)
    if spec is not None and spec.units is None:
        found.pop("units", None)
    return found | AXIS_ATTRIBUTES.get(path.rpartition("/")[2], {})


def upgraded(document: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a node's metadata in the present schema, consolidated nodes too, without a checksum.

    `path` is that of the node in its store. All other entries are kept.
    """
    result = _with(document, present_attributes(path, document))
    if not path:
        result["attributes"]["schema_version"] = SCHEMA_VERSION
    consolidated = document.get("consolidated_metadata")
    if consolidated is not None:
        base = f"{path}/" if path else ""
        nodes = {p: upgraded(n, base + p) for p, n in consolidated["metadata"].items()}
        result["consolidated_metadata"] = {**consolidated, "metadata": nodes}
    return result
