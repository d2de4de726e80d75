"""The fiducial text: one `x,y,z` a line, mm, DICOM patient frame (LPS)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lundprobe_zarr.errors import SourceError, SourceNotFoundError
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.vocabulary.geometry import FloatArray

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
        lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
        positions = np.array([[float(n) for n in line.split(",")] for line in lines], np.float64)
    except ValueError as error:  # not UTF-8, not a number, or lines of different length
        raise SourceError(f"{where}: {error}; expected {_EXPECTED}") from error
    if positions.ndim != 2 or positions.shape[1] != 3 or not np.isfinite(positions).all():
        raise SourceError(f"{where}: {len(lines)} lines, {data[:80]!r}; expected {_EXPECTED}")
    return positions


_EXPECTED = "one x,y,z a line in mm, finite numbers; correct the file"
