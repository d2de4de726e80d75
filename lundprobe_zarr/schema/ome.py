"""OME-Zarr 0.5 metadata of a store, derived from its own metadata.

Each group of volumes carries the attribute `ome`, beside the labels and coordinates of xarray:
https://ngff.openmicroscopy.org/0.5/. It has scale and translation, but no rotation, mirrored axis
or patient frame. Groups whose grid needs one of these have no `ome`: only their `affine` positions
the voxels. The attribute is in each group's own metadata, not in the consolidated metadata of the
root, so opening a store does not show it. `docs/ome-zarr.md` says how readers use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lundprobe_zarr.geometry.affine import is_aligned, ras_to_lps
from lundprobe_zarr.schema.attributes import LEVELS, structured_nodes
from lundprobe_zarr.schema.layout import ARRAY_SPECS, ArraySpec
from lundprobe_zarr.schema.records import SOURCES
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS

#: Version of the specification that the attribute follows.
OME_VERSION = "0.5"
#: Attributes of the root: that groups carry `ome`, and the window of the T2w image.
OME_MARK, _WINDOW = "ome_version", "t2w_window"
#: The frame of all positions, for people: the specification has no place for it.
_FRAME = "DICOM patient (LPS), mm: z to the head, y to the back, x to the patient's left"
#: Soft-tissue window of the synthetic CT, HU, as `preview` shows it.
_SCT_WINDOW = (-160.0, 240.0)
#: Okabe & Ito's palette (https://jfly.uni-koeln.de/color/) and two greys, RGB.
_COLORS = {
    "CTVT_427": "D55E00",
    "PTVT_427": "E69F00",
    "Rectum": "009E73",
    "Bladder": "F0E442",
    "PenileBulb": "CC79A7",
    "Genitalia": "BFBFBF",
    "FemoralHead_L": "56B4E9",
    "FemoralHead_R": "0072B2",
    "BODY": "7F7F7F",
}
_WHITE = "FFFFFF"
#: Hidden by default: they would cover the others.
_HIDDEN = ("sCT", "BODY")

#: Values shown as black and white.
Window = Sequence[float]
_Nodes = Mapping[str, Mapping[str, Any]]


def ome_arrays(group: str, nodes: _Nodes) -> list[ArraySpec]:
    """Return the arrays of a group that OME-Zarr can describe, in canonical order.

    `nodes` are the metadata of the store's nodes by path, with structured attributes. A grid
    that is oblique, mirrored or has a spacing of zero has no such array. The specification has one
    axis besides time and space, so arrays with two or more label dimensions are left out.
    """
    specs = [s for s in ARRAY_SPECS.values() if s.group == group and s.path in nodes]
    specs = [s for s in specs if len(s.label_dims) <= 1]
    return specs if specs and _steps(nodes[specs[0].grid]) is not None else []


def _steps(grid: Mapping[str, Any]) -> dict[str, tuple[float, float]] | None:
    """Return first centre and spacing along z, y, x, mm, LPS; None if OME-Zarr cannot hold it."""
    affine = grid["attributes"]["affine"]
    if not is_aligned(affine):
        return None
    lps = ras_to_lps(affine)
    steps = {a: (float(lps[r, 3]), float(lps[r, r])) for a, r in zip("zyx", (2, 1, 0), strict=True)}
    return steps if all(step > 0 for _, step in steps.values()) else None


def ome_attribute(
    group: str, nodes: _Nodes, levels: int = 0, t2w_window: Window | None = None
) -> dict[str, Any] | None:
    """Return the attribute `ome` of a group; None if OME-Zarr can describe none of its arrays.

    `nodes` are as for `ome_arrays`; `levels` is the number of coarser levels of each array, and
    `t2w_window` the values of the T2w image to show as black and white. Every array has an entry
    of `multiscales`, named as itself. Readers take the first: the image or the masks, whose
    channels `omero` describes, of which a group has one alone.
    """
    specs = ome_arrays(group, nodes)
    if not specs:
        return None
    first = specs[0]
    return {
        "version": OME_VERSION,
        "multiscales": [_multiscale(spec, nodes, levels) for spec in specs],
        "omero": {
            "channels": _channels(first, nodes, t2w_window),
            "rdefs": {
                "defaultT": 0,
                "defaultZ": nodes[first.path]["shape"][-3] // 2,
                "model": "color",
            },
        },
    }


def _multiscale(spec: ArraySpec, nodes: _Nodes, levels: int) -> dict[str, Any]:
    steps = _steps(nodes[spec.grid]) or {}
    labels = [{"name": dim, "type": "channel"} for dim in spec.label_dims]
    space = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in SPATIAL_DIMS]
    found: dict[str, Any] = {
        "name": spec.variable,
        "axes": labels + space,
        "datasets": [_dataset(spec, steps, level) for level in range(levels + 1)],
        "metadata": {"frame": _FRAME},
    }
    if levels:
        found["type"] = level_method(spec)
    return found


def _dataset(
    spec: ArraySpec, steps: Mapping[str, tuple[float, float]], level: int
) -> dict[str, Any]:
    """Return an entry of `datasets`: path, and the position of voxel centres in the patient.

    A voxel of a level covers 2**level voxels along y and x, and its centre is in their middle.
    """
    of_labels = len(spec.label_dims)
    factors = {"z": 1, "y": 2**level, "x": 2**level}
    scale = [1.0] * of_labels + [step * factors[a] for a, (_, step) in steps.items()]
    first = [start + step * (factors[a] - 1) / 2 for a, (start, step) in steps.items()]
    return {
        "path": level_path(spec.variable, level),
        "coordinateTransformations": [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": [0.0] * of_labels + first},
        ],
    }


def level_path(variable: str, level: int) -> str:
    """Return the path of an array of a level, relative to the group of its level 0."""
    return f"levels/{level}/{variable}" if level else variable


def level_step(spec: ArraySpec) -> float:
    """Return the rounding step of means of a coarser level: 1, or about 1 mGy or a thousandth.

    Means have more digits than their sources; these take space and are invisible.
    """
    return 1.0 if spec.variable == "image" else 2.0**-10


def level_method(spec: ArraySpec) -> str:
    """Return how a voxel of a coarser level is computed from those it covers."""
    return "majority" if spec.is_mask else "mean"


def _channels(spec: ArraySpec, nodes: _Nodes, t2w_window: Window | None) -> list[dict[str, Any]]:
    names: Sequence[Any] = (spec.variable,)
    if spec.label_dims:
        names = nodes[spec.group]["attributes"]["labels"][spec.label_dims[0]]
    records = {
        str(next(iter(r["labels"].values()), spec.variable)): r
        for r in nodes[spec.path]["attributes"][SOURCES]
    }
    shown = {"sCT": _SCT_WINDOW, "T2w": t2w_window}
    return [
        _channel(spec, str(name), records.get(str(name), {}), shown.get(str(name)), number)
        for number, name in enumerate(names)
    ]


def _channel(
    spec: ArraySpec, name: str, record: Mapping[str, Any], window: Window | None, number: int
) -> dict[str, Any]:
    low, high = (0.0, 1.0) if spec.is_mask else record.get("range") or (0.0, 1.0)
    start, end = window or (min(0.0, low), high)
    if end <= start:
        end = start + 1.0
    return {
        "label": name,
        "color": _COLORS.get(name, _WHITE) if spec.is_mask else _WHITE,
        "active": name not in _HIDDEN or number == 0,
        "window": {"min": min(low, start), "max": max(high, end), "start": start, "end": end},
    }


def with_ome(attributes: Mapping[str, Any], t2w_window: Window | None) -> dict[str, Any]:
    """Return the attributes of a store's root, marked as having groups with `ome`.

    `t2w_window` is as for `ome_attribute`. All else in `ome` follows from the root.
    """
    kept = {k: v for k, v in attributes.items() if k != _WINDOW}
    window = {} if t2w_window is None else {_WINDOW: list(t2w_window)}
    return kept | {OME_MARK: OME_VERSION} | window


def ome_attributes(root: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the attribute `ome` of each group that has one, by path, from the store's root.

    Raises as `schema.nodes.require_sound` does for metadata that is not of this schema.
    """
    known = structured_nodes(root)
    attributes, nodes = known["attributes"], known["consolidated_metadata"]["metadata"]
    if attributes.get(OME_MARK) != OME_VERSION:
        return {}
    levels, window = (attributes.get(LEVELS) or {}).get("count", 0), attributes.get(_WINDOW)
    groups = [path for path, node in nodes.items() if node["node_type"] == "group"]
    found = {path: ome_attribute(path, nodes, levels, window) for path in groups}
    return {path: ome for path, ome in found.items() if ome is not None}
