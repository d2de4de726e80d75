"""Rebuild NIfTI files from the volumes of a store."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.schema.header import parse_header
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.scaling import unscale

Volume = npt.NDArray[Any]


def nifti_parts(record: SourceRecord, volume: Volume) -> Iterator[bytes]:
    """Uncompressed bytes of the NIfTI file of `record`, rebuilt from its stored `volume`.

    They are the original's, byte for byte, if `record.restores`; else the voxels are the stored,
    rounded ones in the file's own type. Raises `DamagedStoreError` if what is recorded of the file
    cannot be right.
    """
    try:
        yield from _parts(record, volume)
    except (ValueError, TypeError, OverflowError, HeaderDataError) as error:
        raise DamagedStoreError(
            f"cannot be rebuilt from what its store records of it ({error})",
            where=record.path,
            remedy="convert its patient again, or copy the store again",
        ) from error


def _parts(record: SourceRecord, volume: Volume) -> Iterator[bytes]:
    header = base64.b64decode(record.header)
    yield header
    yield base64.b64decode(record.extensions)
    slope, inter = _scaling(header)
    dtype = np.dtype(record.dtype)
    for plane in _physical(record, volume, (slope, inter) != (1.0, 0.0)):
        yield unscale(plane, slope, inter, dtype).tobytes()
    yield base64.b64decode(record.trailer)


def _physical(record: SourceRecord, volume: Volume, is_scaled: bool) -> Iterator[Volume]:
    """Planes of physical values: a mask's foreground is the value it had in the file."""
    if volume.dtype != np.dtype(bool):
        yield from volume
        return
    dtype = np.dtype(np.float64 if is_scaled else record.dtype)
    values = np.array([0, record.foreground or 0], dtype.newbyteorder("="))
    for plane in volume:
        yield values[plane.view(np.uint8)]


def _scaling(header: bytes) -> tuple[float, float]:
    slope, inter = parse_header(header).get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def nifti_bytes(record: SourceRecord, volume: Volume) -> bytes:
    """All uncompressed bytes of a rebuilt NIfTI file; see `nifti_parts`."""
    out = io.BytesIO()
    out.writelines(nifti_parts(record, volume))
    return out.getvalue()
