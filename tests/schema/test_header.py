"""NIfTI headers as bytes: version and byte order are told from the first four."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from lundprobe_zarr.schema.header import parse_header, size_and_order


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
def test_version_and_byte_order_are_told(kind, order):
    header = kind(endianness=order)
    header.set_data_shape((3, 4, 5))
    header.set_data_dtype(np.int16)
    raw = header.binaryblock
    assert size_and_order(raw) == (kind.sizeof_hdr, order)
    assert parse_header(raw) == header
    assert type(parse_header(raw)) is kind
    assert parse_header(raw).endianness == order


@pytest.mark.parametrize("raw", [b"", b"\x5c\x01", b"nonsense", bytes(348), b"\x5c\x01\0\0"])
def test_what_is_no_header_is_refused(raw):
    with pytest.raises(ValueError, match="expected a NIfTI header"):
        parse_header(raw)
