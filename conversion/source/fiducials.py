"""Read the fiducial text: one `x,y,z` per line, mm, DICOM patient frame (LPS)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lundprobe_zarr.conversion.source.errors import named_errors
from lundprobe_zarr.conversion.source.text import SideText, parse_number, read_text
from lundprobe_zarr.errors import SourceError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.schema.records import SourceRecord

#: Size limit. A real file has three lines of a few dozen bytes.
_MAX_BYTES = 1 << 16


def read_fiducials(path: Path, where: str) -> tuple[FloatArray, SourceRecord]:
    """Return positions (fiducial, axis) with axis = x, y, z in mm, LPS, and the file's record.

    Raises `SourceError` with `where` for any other text.
    """
    with named_errors(where):
        try:
            side = read_text(path, _MAX_BYTES)
        except ValueError as error:
            raise SourceError(str(error), where=where, expected=_EXPECTED) from error
    positions = _positions(side, where)
    record = SourceRecord(
        labels={},
        path=where,
        bytes=len(side.data),
        sha256=hashlib.sha256(side.data).hexdigest(),
        text=side.marked,
        encoding=side.encoding,
    )
    return positions, record


def _positions(side: SideText, where: str) -> FloatArray:
    """Return the positions (fiducial, 3) of the text's lines; blank lines are skipped."""
    lines = enumerate(side.text.split("\n"), 1)
    rows = [_row(line, f"{where}: line {n}") for n, line in lines if line.strip()]
    if not rows:
        raise SourceError("no line with a position", where=where, expected=_EXPECTED)
    return np.array(rows, np.float64)


def _row(line: str, where: str) -> list[float]:
    """Return the three numbers of a line. Errors do not quote it: it may contain a name."""
    cells = line.split(";" if ";" in line else ",")
    try:
        numbers = [parse_number(cell) for cell in cells]
    except ValueError as error:
        raise SourceError(f"not numbers: {error}", where=where, expected=_EXPECTED) from None
    if ";" in line or len(numbers) == 6:
        hint = "semicolons" if ";" in line else "six numbers, as with decimal commas"
        raise SourceError(str(hint), where=where, expected=_EXPECTED)
    if len(numbers) != 3:
        raise SourceError("not three numbers", where=where, expected=_EXPECTED)
    return numbers


_EXPECTED = "one x,y,z per line in mm, finite numbers with a decimal point; correct the file"
