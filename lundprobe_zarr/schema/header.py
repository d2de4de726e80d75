"""Headers of NIfTI files: version, byte order, and the position of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from lundprobe_zarr.geometry.affine import FloatArray

_KINDS: dict[int, Any] = {348: Nifti1Header, 540: Nifti2Header}


def size_and_order(start: bytes) -> tuple[int, str] | None:
    """Return the size in bytes and byte order, `<` or `>`, of a header; None if it is no NIfTI.

    `start` are its first four bytes: the size, in the header's own byte order. Source: `sizeof_hdr`
    in https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
    """
    orders = {"<": int.from_bytes(start[:4], "little"), ">": int.from_bytes(start[:4], "big")}
    return next(((size, order) for order, size in orders.items() if size in _KINDS), None)


def parse_header(raw: bytes) -> Nifti1Header | Nifti2Header:
    """Parse a header of 348 (NIfTI-1) or 540 (NIfTI-2) bytes, in its own order, unchecked.

    Raises `ValueError` for other bytes.
    """
    found = size_and_order(raw)
    if found is None or len(raw) != found[0]:
        raise ValueError(f"{len(raw)} bytes that begin with {raw[:4]!r}; expected a NIfTI header")
    header: Nifti1Header | Nifti2Header = _KINDS[found[0]](raw, endianness=found[1], check=False)
    return header


@dataclass(frozen=True)
class SpatialUnit:
    """Unit of a header's lengths: `times / over` millimetres, two whole numbers."""

    name: str
    times: float = 1.0
    over: float = 1.0

    @property
    def is_millimetre(self) -> bool:
        """Whether lengths need no conversion."""
        return self.times == self.over

    def to_mm(self, lengths: FloatArray) -> FloatArray:
        """Return lengths in this unit as millimetres.

        Each is rounded once: a value that float64 holds exactly in mm is exact.
        """
        return np.asarray(lengths * self.times / self.over)

    def affine_to_mm(self, affine: FloatArray) -> FloatArray:
        """Return an affine (4, 4), voxel (i, j, k) -> this unit, as one to millimetres."""
        return np.vstack([self.to_mm(affine[:3]), affine[3:]])


#: Spatial codes of `xyzt_units`, in its lowest three bits. 0 is unknown, which both reference
#: readers take for mm, as they do 4 to 7, which nothing defines. Source: `NIFTI_UNITS_*` in
#: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
_SPATIAL_UNITS = {
    0: SpatialUnit("no unit"),
    1: SpatialUnit("metres", times=1000.0),
    2: SpatialUnit("millimetres"),
    3: SpatialUnit("micrometres", over=1000.0),
}
#: How far the length of (b, c, d) may lie above 1: a hundred times float32's rounding.
_QUATERNION_ROUNDING = 1e-5


def spatial_unit(header: Any) -> SpatialUnit:
    """Return the unit of a parsed header's lengths; undefined codes count as mm, and are named."""
    code = int(header["xyzt_units"]) & 7
    return _SPATIAL_UNITS.get(code) or SpatialUnit(f"the undefined unit {code}")


def has_sform(header: Any) -> bool:
    """Return whether a parsed header's sform is valid: its code is above 0."""
    return int(header["sform_code"]) > 0


def has_qform(header: Any) -> bool:
    """Return whether a parsed header's qform is valid: its code is above 0."""
    return int(header["qform_code"]) > 0


def sform_mm(header: Any) -> FloatArray:
    """Return the affine (4, 4), voxel (i, j, k) -> mm, RAS, of a parsed header's `srow_*`."""
    return spatial_unit(header).affine_to_mm(np.asarray(header.get_sform(), dtype=np.float64))


def qform_mm(header: Any) -> FloatArray:
    """Return the affine (4, 4), voxel -> mm, RAS, of a parsed header's quaternion and `pixdim`.

    `pixdim[0]` of 0 counts as 1 (the standard), as does any above 0 (both reference readers). A
    quaternion longer than 1 by rounding is normalised, as in ITK. All else is as in nibabel.
    Raises `HeaderDataError` or `ValueError` for no valid rotation or voxel sizes.
    """
    usable = header.copy()
    if usable["pixdim"][0] >= 0:
        usable["pixdim"][0] = 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = float(np.linalg.norm([float(header[name]) for name in names]))
    if 1 < length <= 1 + _QUATERNION_ROUNDING:
        for name in names:
            usable[name] = float(header[name]) / length
    return spatial_unit(header).affine_to_mm(np.asarray(usable.get_qform(), dtype=np.float64))


def affine_mm(header: Any) -> FloatArray:
    """Return the affine (4, 4), voxel -> mm, RAS, of a parsed header: its sform, else its qform.

    Raises as `qform_mm` does, and `ValueError` if neither is valid.
    """
    if has_sform(header):
        return sform_mm(header)
    if has_qform(header):
        return qform_mm(header)
    raise ValueError("qform_code and sform_code are both 0; expected either above 0")


#: Text fields of a header that are not needed to read voxels; `unused_str` is of NIfTI-2.
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
#: Fields of NIfTI-1 without a meaning, which may hold anything: "UNUSED" in
#: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
UNUSED_FIELDS = ("extents", "session_error", "regular", "glmax", "glmin")
#: Bytes between header and voxels of a file without extensions.
NO_EXTENSIONS = bytes(4)


def without_text(raw: bytes) -> bytes:
    """Return the bytes of a header with free text and unused fields zeroed, without extensions.

    All that positions and scales the voxels is kept. By `vox_offset` the voxels follow directly
    after `NO_EXTENSIONS`. Raises `ValueError` if `raw` is no header.
    """
    header: Any = parse_header(raw)
    for name in (*TEXT_FIELDS, *UNUSED_FIELDS):
        if name in header.keys():  # noqa: SIM118 - a header is no mapping
            header[name] = np.zeros((), header[name].dtype)
    header["vox_offset"] = len(raw) + len(NO_EXTENSIONS)
    return bytes(header.binaryblock)
