"""Hashes of JSON documents have the values that files in the wild carry."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lundprobe_zarr.dataset.content import dataset_content
from lundprobe_zarr.schema.document import (
    CHECKSUM,
    add_checksum,
    canonical_json,
    crc32c,
    fails_checksum,
    json_sha256,
    sha256_of,
)

ODD = {"é": [1.5, None, True, "\u2028"], "a": {"z": 1e22, "b": -0.0}}
OF_ODD = "89a23e5d3dc6d8819e6605117a6ce0859a72e3fe9a8035b95c4bf34f52bc1ddd"


def test_canonical_json_sorts_names_and_leaves_out_spaces() -> None:
    expected = r'{"a":{"b":-0.0,"z":1e+22},"\u00e9":[1.5,null,true,"\u2028"]}'
    assert canonical_json(ODD) == expected
    assert json_sha256(ODD) == OF_ODD


def test_a_documents_own_checksum_has_the_known_value_and_covers_all_else() -> None:
    document: dict[str, Any] = {"attributes": {"b": 2}, "odd": ODD}
    add_checksum(document, document["attributes"])
    assert (
        document["attributes"][CHECKSUM]
        == "b1eac72253898e66097fc020f2976e4be0113edd1a5559a8597ee6f57cdd9f9b"
    )
    assert CHECKSUM == "self_sha256"
    read = json.loads(json.dumps(document, indent=3))
    assert not fails_checksum(read, read["attributes"])
    assert read == document
    read["odd"]["a"]["z"] = 2
    assert fails_checksum(read, read["attributes"])


def test_a_document_without_a_checksum_is_of_an_early_version() -> None:
    assert not fails_checksum({"a": 1}, {"a": 1})


def test_content_hashes_have_the_known_values() -> None:
    found = dataset_content({"b": "1", "a": None}, {"patients": {"base": "2"}})
    assert found.patients == "b658ad8cff4d5ebab20776cb60f9ec2949d042db462796e2e348c401b92fb126"
    assert found.sha256 == "6c244eb5b846cf12659ec9608e551b377fc3c146bc19614cbc88bd26abfaf43f"


def test_numbers_that_are_no_numbers_are_refused_where_content_is_hashed() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")}, allow_nan=False)


def test_checksums_of_bytes_have_the_known_values() -> None:
    # RFC 3720, B.4: 32 bytes of zeros.
    assert crc32c(bytes(32)).hex() == "aa36918a"
    assert crc32c(np.zeros(32, np.uint8)) == crc32c(bytes(32))
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
