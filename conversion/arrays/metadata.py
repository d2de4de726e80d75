"""Write the groups, coordinates and attributes of a store with zarr, after its shards.

xarray is not used: the shards exist already, and label coordinates need Zarr's own `string` type.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from lundprobe_zarr.conversion.arrays.levels import write_levels
from lundprobe_zarr.conversion.arrays.volumes import Contents, WrittenArray
from lundprobe_zarr.dataset.objects import ROOT, node_document
from lundprobe_zarr.schema.attributes import AFFINE, SHAPE, plain
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.encoding import shard_shape
from lundprobe_zarr.schema.layout import AFFINE_FRAME, CONVENTIONS, GROUP_TITLES
from lundprobe_zarr.schema.levels import whole_metadata
from lundprobe_zarr.schema.ome import with_ome
from lundprobe_zarr.schema.records import SOURCES
from lundprobe_zarr.stores.nodes import blosc_codec, write_axes, write_small
from lundprobe_zarr.vocabulary.names import AXES, MODALITY_UNITS, SPATIAL_DIMS

_GRID_GROUPS = ("mri", "sct", "dose")
_LABEL_ATTRIBUTES = {
    "modality": "imaging modality",
    "structure": "delineated structure",
    "fold": "cross-validation fold of the network",
    "step": "1: edited without, 2: with the uncertainty map",
    "observer": "radiation oncologist",
}


def write_metadata(
    folder: Path, contents: Contents, attributes: Mapping[str, Any], levels: int = 0
) -> None:
    """Write every group and array of the store in `folder`, and consolidate each group.

    `levels` coarser levels of its volumes are computed from their shards.

    Each group has its own consolidated metadata, so that `xr.open_zarr(store, group="mri")` needs
    no directory listing, which an HTTP server cannot provide.
    """
    root = zarr.create_group(
        LocalStore(folder), attributes={"Conventions": CONVENTIONS} | plain(attributes)
    )
    groups = _groups(contents)
    for path in groups:
        _write_group(root, path, contents)
    for path in (*reversed(groups), ""):
        with warnings.catch_warnings():
            # Not part of the Zarr v3 specification yet, but all supported readers accept it.
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(root.store, path=path)
    document = json.loads((folder / ROOT).read_text())
    if levels:
        write_levels(folder, document, levels)
    document["attributes"] = with_ome(document["attributes"], contents.t2w_window)
    _write_documents(folder, document)


def _write_documents(folder: Path, root: dict[str, Any]) -> None:
    """Write the metadata of every group from the store's `root` metadata; write `root` last.

    `root` gets its checksum here. Readers verify it with this checksum.
    """
    consolidated = whole_metadata(root)
    for path, node in consolidated["metadata"].items():
        if node["node_type"] == "group":
            document = node_document(path, consolidated)
            (folder / path / ROOT).write_text(json.dumps(document, indent=2))
    add_checksum(root, root["attributes"])
    (folder / ROOT).write_text(json.dumps(root, indent=2))


def _groups(contents: Contents) -> list[str]:
    present = {a.plan.spec.group for a in contents.arrays} | set(contents.grids)
    if contents.fiducials is not None:
        present.add("mri/clinical")
    return [path for path in GROUP_TITLES if path in present]


def _write_group(root: zarr.Group, path: str, contents: Contents) -> None:
    arrays = [a for a in contents.arrays if a.plan.spec.group == path]
    labels = {dim: values for a in arrays for dim, values in a.plan.labels.items()}
    attributes: dict[str, Any] = {"Conventions": CONVENTIONS, "title": GROUP_TITLES[path]}
    if path in _GRID_GROUPS:
        attributes[AFFINE] = contents.grids[path].affine.tolist()
        attributes["affine_frame"] = AFFINE_FRAME
        attributes[SHAPE] = list(contents.grids[path].shape)
    attributes["labels"] = {dim: list(values) for dim, values in labels.items()}
    group = root.create_group(path, attributes=plain(attributes))
    if path in _GRID_GROUPS:
        write_axes(group, contents.grids[path].affine, contents.grids[path].shape)
    for dim, values in labels.items():
        write_small(group, dim, (dim,), values, {"long_name": _LABEL_ATTRIBUTES[dim]})
    if "modality" in labels:
        units = [MODALITY_UNITS[str(m)] for m in labels["modality"]]
        write_small(group, "unit", ("modality",), units, {"long_name": "unit of the voxel values"})
    for array in arrays:
        _write_volume(group, array)
    if path == "mri/clinical" and contents.fiducials is not None:
        _write_fiducials(group, contents)


def _write_volume(group: zarr.Group, array: WrittenArray) -> None:
    spec, codec = array.plan.spec, array.codec
    ones = (1,) * len(spec.label_dims)
    attributes: dict[str, Any] = {"units": spec.units, "long_name": spec.long_name}
    if "modality" in spec.label_dims:
        attributes["coordinates"] = "unit"
    attributes[SOURCES] = [r.to_attribute() for r in array.records]
    group.create_array(
        spec.variable,
        shape=array.shape,
        dtype=codec.dtype,
        chunks=ones + codec.chunk,
        shards=ones + shard_shape(codec.shape),
        compressors=[blosc_codec(codec), Crc32cCodec()],
        fill_value=codec.dtype.type(0),
        dimension_names=[*spec.label_dims, *SPATIAL_DIMS],
        attributes=plain(attributes),
    )
    if spec.present is not None:
        _write_present(group, array)


def _write_present(group: zarr.Group, array: WrittenArray) -> None:
    spec = array.plan.spec
    flags = np.zeros(array.shape[:-3], bool)
    for index, present in array.plan.present().items():
        flags[index] = present
    about = {"long_name": f"whether the patient has this {spec.variable}"}
    write_small(group, str(spec.present), spec.label_dims, flags, about)


def _write_fiducials(group: zarr.Group, contents: Contents) -> None:
    if contents.fiducials is None:
        return
    positions, record = contents.fiducials
    write_small(
        group, "axis", ("axis",), AXES, {"long_name": "axis of the DICOM patient frame (LPS)"}
    )
    attributes = {
        "units": "mm",
        "long_name": "centres of the gold fiducials, DICOM patient frame (LPS)",
        SOURCES: [record.to_attribute()],
    }
    write_small(group, "fiducial_position", ("fiducial", "axis"), positions, attributes)
