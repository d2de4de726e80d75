"""The fiducial text: one `x,y,z` a line, mm, DICOM patient frame (LPS)."""

from __future__ import annotations

import hashlib
from math import isfinite
from pathlib import Path

import numpy as np

from lundprobe_zarr.errors import SourceError, SourceNotFoundError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.schema.records import SourceRecord

#: A few dozen bytes a line and three lines: more than this is some other file.
_MAX_BYTES = 1 << 16


def read_fiducials(path: Path, where: str) -> tuple[FloatArray, SourceRecord]:
    """Positions (fiducial, axis) with axis = x, y, z in mm LPS, and the file's record.

    Raises `SourceError` naming `where` for text that holds anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"{where}: vanished or a dangling link; expected a readable file; restore it"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{where}: cannot be read ({error.strerror or error}); expected a readable file; check "
            "its permissions and the disk"
        ) from error
    if len(data) > _MAX_BYTES:
        raise SourceError(f"{where}: more than {_MAX_BYTES} bytes; expected {_EXPECTED}")
    positions = parse_fiducials(data, where)
    record = SourceRecord(
        labels={},
        path=where,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        text=data.decode("utf-8"),
    )
    return positions, record


def parse_fiducials(data: bytes, where: str) -> FloatArray:
    """Positions (fiducial, 3) of the text's lines; blank lines are passed over."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{where}: not UTF-8 text ({error}); expected {_EXPECTED}") from error
    rows = [_row(line, f"{where}: line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise SourceError(f"{where}: no line with a position; expected {_EXPECTED}")
    return np.array(rows, np.float64)


def _row(line: str, where: str) -> list[float]:
    """The three numbers of a line; what it says instead is not repeated: it may be a name."""
    try:
        numbers = [float(cell) for cell in line.split(",")]
    except ValueError:
        raise SourceError(f"{where}: not numbers; expected {_EXPECTED}") from None
    if len(numbers) != 3 or not all(map(isfinite, numbers)):
        raise SourceError(f"{where}: not three finite numbers; expected {_EXPECTED}")
    return numbers


_EXPECTED = "one x,y,z a line in mm, finite numbers; correct the file"
