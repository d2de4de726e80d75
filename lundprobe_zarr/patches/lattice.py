"""The lattice that a patient's patches are boxes of, from the metadata of the store."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.geometry.lattice import Grid, respaced
from lundprobe_zarr.patches.request import Content
from lundprobe_zarr.stores.metadata import StoreMetadata

#: What fills the part of a patch outside the volume: an error, zeros, or the nearest voxel.
Pad = Literal["error", "zero", "edge"]


def require_pad(pad: str) -> None:
    """Raise `UsageError` for an unknown padding policy."""
    if pad not in get_args(Pad):
        raise UsageError(f"pad={pad!r}", expected=f"one of {', '.join(get_args(Pad))}")


def stored_grid(metadata: StoreMetadata, name: str) -> Grid:
    """Return the lattice of a stored grid; raise `UnknownLabelError` if the patient lacks it."""
    if name not in metadata.groups:
        raise UnknownLabelError(
            f"patient {metadata.patient_id} has no {name!r} grid",
            remedy=f"it has {', '.join(g for g in metadata.groups if '/' not in g)}",
        )
    attributes = metadata.groups[name]
    z, y, x = (int(n) for n in attributes["shape"])
    return Grid(np.array(attributes["affine"], dtype=np.float64), (z, y, x))


def lattice_of(metadata: StoreMetadata, content: Content) -> Grid:
    """Return the lattice of patches of `content`: the stored grid, respaced if requested.

    A respaced lattice has the grid's centre and as many voxels as fit between its outer edges,
    as `.lp.resample` makes it. Raise `UnknownLabelError` if the patient lacks the grid.
    """
    grid = stored_grid(metadata, content.grid)
    return grid if content.spacing_mm is None else respaced(grid, content.spacing_mm)
