"""Draw a slice as a small HTML picture, for notebooks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt

_WIDTH = 240  # pixels on the screen
#: Percentiles shown as black and white; images have a few very bright voxels.
_PERCENTILES = (1.0, 99.5)


def masks_thumbnail(masks: npt.NDArray[np.bool_]) -> str:
    """Draw one slice of masks (structure, rows, columns) as an HTML image in colours.

    The first structures are drawn on top of the last, which are larger.
    """
    numbers = np.arange(len(masks), 0, -1)[:, None, None]
    return _image(np.where(masks, numbers, 0).max(axis=0), "nipy_spectral", 0, len(masks))


def grey_thumbnail(plane: npt.NDArray[Any]) -> str:
    """Draw one slice (rows, columns) of numbers as an HTML image in grey."""
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, _PERCENTILES) if finite.size else (0.0, 1.0)
    return _image(plane, "gray", low, high if high > low else low + 1)


def _image(plane: npt.NDArray[Any], colours: str, low: float, high: float) -> str:
    from matplotlib.image import imsave

    out = io.BytesIO()
    imsave(out, plane, cmap=colours, vmin=low, vmax=high, format="png")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img width="{_WIDTH}" alt="middle slice" src="data:image/png;base64,{data}">'
