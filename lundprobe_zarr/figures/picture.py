"""Pictures of planes for people: grey values in a window, the right way up, square pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.geometry.plane import Plane

Format = Literal["png", "webp"]
#: A picture has at most so many pixels for one voxel along its longer side.
_MOST_REPEATS = 16
_WEBP_QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """A picture of a plane: grey values (rows, columns), uint8, and where its pixels lie."""

    pixels: npt.NDArray[np.uint8]
    plane: Plane

    def encoded(self, kind: Format) -> bytes:
        """Return it as PNG, without loss, or as WebP, with little."""
        out = io.BytesIO()
        options: dict[str, Any] = (
            {"compress_level": 4} if kind == "png" else {"quality": _WEBP_QUALITY, "method": 2}
        )
        Image.fromarray(self.pixels).save(out, kind, **options)
        return out.getvalue()


def picture(values: npt.NDArray[Any], plane: Plane, low: float, high: float) -> Picture:
    """Draw a plane (rows, columns) in grey: `low` and below is black, `high` and above is white.

    Radiological convention: the patient's right is at the left of axial and coronal planes, and
    anterior at the left of sagittal ones; anterior or superior is at the top. Rows and columns that
    lie further apart than the others are repeated, so that pixels are about square. What is no
    number is black.
    """
    pixels = as_grey(values, low, high)
    across = [plane.row_mm, plane.column_mm]
    origin = plane.origin_mm
    for axis, step in enumerate(across):
        if _runs_backwards(step):
            pixels = np.flip(pixels, axis)
            origin = origin + step * (pixels.shape[axis] - 1)
            across[axis] = -step
    repeats = _repeats(across[0], across[1])
    for axis, count in enumerate(repeats):
        if count > 1:
            pixels = np.repeat(pixels, count, axis)
            across[axis] = across[axis] / count
            origin = origin - across[axis] * (count - 1) / 2
    turned = Plane(plane.axis, plane.index, origin, across[0], across[1])
    return Picture(np.ascontiguousarray(pixels), turned)


def as_grey(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Return values as uint8: 0 at `low` and below, 255 at `high` and above, linear between."""
    numbers = np.asarray(values, np.float32)
    scaled = (numbers - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-12)) + 0.5
    grey: npt.NDArray[np.uint8] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).astype(np.uint8)
    return grey


def _runs_backwards(step: FloatArray) -> bool:
    """Return whether a step leads away from the side that radiologists have at the end.

    That is the patient's left (+x), back (+y) or feet (-z), by the axis it is nearest to.
    """
    main = int(np.argmax(np.abs(step)))
    return bool((step[main] > 0) == (main == 2))


def _repeats(row_mm: FloatArray, column_mm: FloatArray) -> tuple[int, int]:
    sizes = float(np.linalg.norm(row_mm)), float(np.linalg.norm(column_mm))
    least = min(sizes)
    rows, columns = (min(_MOST_REPEATS, max(1, round(size / least))) for size in sizes)
    return rows, columns
