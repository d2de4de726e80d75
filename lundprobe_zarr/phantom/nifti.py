"""Write NIfTI-1 files in the manner of the dataset's three writers, gzipped reproducibly.

zlib-ng at level 6 is several times as fast as zlib's default, which ITK uses, and its files are at
most a few per cent larger. The gzip header has no time and no file name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import header_dtype
from zlib_ng import zlib_ng

from lundprobe_zarr.phantom.grids import Grid

#: `descrip` of every header.
DESCRIPTION = "SYNTHETIC PHANTOM - not patient data"

#: `itk` wrote most files, `nibabel` the uncertainty maps, `other` the fiducial masks.
Writer = Literal["itk", "nibabel", "other"]

_GZIP = 31  # zlib's `wbits` for a 32 KiB window and a gzip header
_LEVEL = 6
#: Header, and four zero bytes that mean "no extensions".
_OFFSET = 352
_DATATYPES = {"uint8": 2, "int16": 4, "float32": 16, "float64": 64}
_MM, _MM_AND_S = 2, 10


def header(grid: Grid, dtype: npt.DTypeLike, writer: Writer) -> bytes:
    """Return the header (348 bytes) of a volume on `grid`, affine in RAS, mm, as by `writer`.

    Raises `KeyError` for a `dtype` that the dataset does not use.
    """
    out = np.zeros((), dtype=header_dtype)
    kind = np.dtype(dtype)
    out["sizeof_hdr"], out["vox_offset"], out["magic"] = 348, _OFFSET, b"n+1"
    out["datatype"], out["bitpix"] = _DATATYPES[kind.name], 8 * kind.itemsize
    out["dim"] = (3, *grid.shape[::-1], 1, 1, 1, 1)
    out["descrip"] = DESCRIPTION.encode()
    affine = grid.affine
    out["srow_x"], out["srow_y"], out["srow_z"] = affine[:3]
    # From LPS to RAS is half a turn about z: the quaternion (0, 0, 0, 1).
    out["quatern_d"] = 1
    out["qoffset_x"], out["qoffset_y"], out["qoffset_z"] = affine[:3, 3]
    if writer == "nibabel":
        out["pixdim"] = (1, *grid.spacing, 1, 1, 1, 1)
        out["scl_slope"], out["scl_inter"] = np.nan, np.nan
        out["sform_code"] = 2
    else:
        out["pixdim"] = (1, *grid.spacing, 0, 0, 0, 0)
        out["scl_slope"] = 1
        out["qform_code"], out["sform_code"] = 1, 1
        out["xyzt_units"] = _MM_AND_S if writer == "itk" else _MM
        out["regular"] = b"r" if writer == "itk" else b""
    return out.tobytes()


def write(
    path: Path,
    grid: Grid,
    slabs: npt.NDArray[np.generic] | Iterable[npt.NDArray[np.generic]],
    dtype: npt.DTypeLike,
    writer: Writer = "itk",
) -> None:
    """Write a volume (z, y, x), or its slabs in the order of z, as `dtype`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pack = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _GZIP)
    with path.open("wb") as file:
        file.write(pack.compress(header(grid, dtype, writer) + bytes(4)))
        for slab in slabs:
            file.write(pack.compress(np.ascontiguousarray(slab, dtype=dtype)))
        file.write(pack.flush())
