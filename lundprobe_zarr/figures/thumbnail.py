"""A handle as HTML for notebooks: its middle slice, its shape and whose it is."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import numpy as np

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.huggingface.references import Array

if TYPE_CHECKING:
    from lundprobe_zarr.huggingface.handles import LazyVoxels

_WIDTH = 240  # pixels on the screen
#: Grey values from the first to the last of these percentiles; scanners leave a few bright voxels.
_PERCENTILES = (1.0, 99.5)


def handle_html(handle: LazyVoxels) -> str:
    """HTML of a handle: a picture of the middle slice of its first volume, and its `repr`.

    Masks are drawn together, each structure in its colour. Only that slice is read; where it
    cannot be, the reason takes the picture's place.
    """
    caption = f"<code>{html.escape(repr(handle))}</code>"
    try:
        picture = _picture(handle)
    except LundProbeError as error:
        picture = html.escape(str(error))
    return f"<div>{picture}<br>{caption}</div>"


def _picture(handle: LazyVoxels) -> str:
    if 0 in handle.shape:
        return "no voxels"
    drawn = _masks(handle) if handle["array"].endswith("mask") else _grey(handle)
    data = base64.b64encode(drawn).decode()
    return f'<img width="{_WIDTH}" alt="middle slice" src="data:image/png;base64,{data}">'


def _middle(handle: LazyVoxels) -> tuple[int, ...]:
    """Index of the middle slice; none for a handle that is a slice."""
    return () if handle["axial"] else (handle.shape[-3] // 2,)


def _masks(handle: LazyVoxels) -> bytes:
    masks = handle[(slice(None), *_middle(handle), ...)]
    # The vocabulary has the targets first and the body last: the first stay on top.
    numbers = np.arange(len(masks), 0, -1)[:, None, None]
    return _png(np.where(masks, numbers, 0).max(axis=0), "nipy_spectral", 0, len(masks))


def _grey(handle: LazyVoxels) -> bytes:
    first = () if handle.labels is None else (0,)
    plane = handle[(*first, *_middle(handle), ...)]
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 1.0)
    return _png(plane, "gray", low, high if high > low else low + 1)


def _png(plane: Array, colours: str, low: float, high: float) -> bytes:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, plane, cmap=colours, vmin=low, vmax=high, format="png")
    return out.getvalue()
