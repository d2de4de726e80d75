"""Unique identifiers that follow from what they identify: the same content, the same UID."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

#: What a change to the objects written here has to raise, so that they get other UIDs.
_WRITER = "lundprobe-zarr dicom 2"


def uid(*parts: str | bytes | int) -> str:
    """Return the UID of `parts`: `2.25.` and the number of a UUID made from their SHA-256.

    The form is that of PS3.5 B.2. The UUID is of version 8 (RFC 9562: custom contents).
    """
    digest = sha256()
    for part in (_WRITER, *parts):
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    number = int.from_bytes(digest.digest()[:16], "big")
    number = number & ~(0xF << 76) | 8 << 76  # version
    number = number & ~(0x3 << 62) | 2 << 62  # variant
    return f"2.25.{number}"


def digest_of(*arrays: npt.NDArray[Any]) -> bytes:
    """Return the SHA-256 of the bytes of arrays, one after another."""
    digest = sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
