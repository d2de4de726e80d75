"""Draw a slice as a small HTML picture, for notebooks and reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lundprobe_zarr.storage.location import Location

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


#: Width and resolution of a report's picture, inches and dots per inch, and its JPEG quality.
_INCHES, _DPI, _QUALITY = 3.2, 110, 82
#: Free space around the structures of a report's picture, mm.
_MARGIN_MM = 20.0
#: Least height of a report's picture, as a part of its width; at most it is square.
_LEAST_HEIGHT = 0.7


def slice_jpeg(location: Location, patient_id: str, centre: Sequence[float] | None) -> bytes:
    """Draw the axial T2w slice through the voxel `centre` (z, y, x), MRI grid, as a JPEG.

    Clinical structures are outlined; the patient's right is at the left. None: the middle slice.
    Raises `DamagedStoreError` if what is drawn is missing or damaged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lundprobe_zarr.figures import paint
    from lundprobe_zarr.figures.planes import AXIAL, read_slice

    found = read_slice(location, patient_id, centre)
    frame = found.frame
    near = [mask for structure, mask in found.masks.items() if structure != "BODY"]
    window = paint.window_around(frame, AXIAL, near, _MARGIN_MM)
    width = max(window.length(AXIAL.columns), window.length(AXIAL.rows))
    height = max(window.length(AXIAL.rows), _LEAST_HEIGHT * width)
    window = window.stretched(AXIAL.columns, width).stretched(AXIAL.rows, height)
    inches = _INCHES * height / width
    figure = Figure(figsize=(_INCHES, inches), facecolor="black")
    FigureCanvasAgg(figure)
    axes = paint.add_panel(figure, (0, 0, 1, 1), AXIAL, window, "slice")
    if found.t2w.size:
        low, high = paint.grey_limits([found.t2w])
        paint.paint(axes, frame, AXIAL, found.t2w, cmap="gray", vmin=low, vmax=high)
    for structure, mask in found.masks.items():
        paint.outline(axes, frame, AXIAL, mask, paint.STRUCTURE_LINES[structure], structure)
    paint.letter_sides(axes, AXIAL)
    paint.add_scale_bar(axes, paint.scale_bar_mm(window.length(AXIAL.columns)))
    out = io.BytesIO()
    figure.savefig(out, format="jpeg", dpi=_DPI, pil_kwargs={"quality": _QUALITY})
    return out.getvalue()
