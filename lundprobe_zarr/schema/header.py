"""The header of a NIfTI file as bytes: of which version it is, and in which byte order."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

_KINDS: dict[int, Any] = {348: Nifti1Header, 540: Nifti2Header}


def size_and_order(start: bytes) -> tuple[int, str] | None:
    """Size of a header in bytes and its byte order, `<` or `>`; None if it is no NIfTI header.

    `start` are its first four bytes: the size, in the header's own byte order. Source: `sizeof_hdr`
    in https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
    """
    orders = {"<": int.from_bytes(start[:4], "little"), ">": int.from_bytes(start[:4], "big")}
    return next(((size, order) for order, size in orders.items() if size in _KINDS), None)


def parse_header(raw: bytes) -> Nifti1Header | Nifti2Header:
    """The header that 348 (NIfTI-1) or 540 (NIfTI-2) bytes are, in its own order, unchecked.

    Raises `ValueError` if they are none.
    """
    found = size_and_order(raw)
    if found is None or len(raw) != found[0]:
        raise ValueError(f"{len(raw)} bytes that begin with {raw[:4]!r}; expected a NIfTI header")
    header: Nifti1Header | Nifti2Header = _KINDS[found[0]](raw, endianness=found[1], check=False)
    return header


#: Fields of a header that hold text which nobody needs to read the voxels; `unused_str` is
#: NIfTI-2's.
TEXT_FIELDS = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
#: Fields of NIfTI-1 that mean nothing, so that they may hold anything: "UNUSED" in
#: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h.
UNUSED_FIELDS = ("extents", "session_error", "regular", "glmax", "glmin")
#: What stands between header and voxels of a file without extensions.
NO_EXTENSIONS = bytes(4)


def without_text(raw: bytes) -> bytes:
    """The bytes of a header with free text and unused fields zeroed, of a file without extensions.

    All that places and scales the voxels stays; `vox_offset` says that they follow at once, after
    `NO_EXTENSIONS`. Raises `ValueError` if `raw` is no header.
    """
    header: Any = parse_header(raw)
    for name in (*TEXT_FIELDS, *UNUSED_FIELDS):
        if name in header.keys():  # noqa: SIM118 - a header is no mapping
            header[name] = np.zeros((), header[name].dtype)
    header["vox_offset"] = len(raw) + len(NO_EXTENSIONS)
    return bytes(header.binaryblock)
