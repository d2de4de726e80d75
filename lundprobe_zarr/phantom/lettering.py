"""The warning text that is burnt into the first rows of an oldAcq synthetic CT."""

from __future__ import annotations

import numpy as np

from lundprobe_zarr.phantom.sampling import Float32
from lundprobe_zarr.vocabulary.names import WARNING_TEXT_ROWS

_TEXT = "WARNING NOT FOR DIAGNOSIS"
#: HU of the letters.
_INK = 1000.5
#: Glyphs of 7 rows × 5 columns. Each row is a number; its most significant bit is on the left.
_GLYPHS: dict[str, tuple[int, ...]] = {
    " ": (0, 0, 0, 0, 0, 0, 0),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "D": (30, 17, 17, 17, 17, 17, 30),
    "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 14),
    "I": (14, 4, 4, 4, 4, 4, 14),
    "N": (17, 25, 21, 19, 17, 17, 17),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "S": (15, 16, 16, 14, 1, 1, 30),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "W": (17, 17, 17, 21, 21, 27, 17),
}
#: Rows of a full-size synthetic CT, in which the text takes 50 rows.
_FULL_ROWS = 560


def text_rows(rows: int) -> int:
    """Return how many first rows of a matrix hold the text: 50 for 256 rows and more."""
    if rows >= 256:
        return WARNING_TEXT_ROWS
    return max(2, round(WARNING_TEXT_ROWS * rows / _FULL_ROWS))


def burn_in(band: Float32) -> None:
    """Write the text into the rows `band` (z, y, x), HU, in place."""
    letters = np.array([_GLYPHS[c] for c in _TEXT], dtype=np.uint8)
    bits = np.unpackbits(letters[:, :, None], axis=2)[:, :, 2:]  # a blank column, then the glyph
    picture = np.concatenate(list(bits), axis=1).astype(bool)
    rows, columns = band.shape[1:]
    scale = min(rows // (picture.shape[0] + 2), columns // picture.shape[1])
    if scale:
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    else:  # too few rows for whole letters: draw as much of them as fits
        picture = picture[2 : 2 + rows, : columns - 2]
    top, left = (rows - picture.shape[0]) // 2, 1
    view = band[:, top : top + picture.shape[0], left : left + picture.shape[1]]
    view[:, picture] = _INK
