"""JSON documents and checksums: parsing, the canonical form, SHA-256 and CRC-32C.

A document can hold its own checksum, so that readers can verify it: the manifest does, and the root
`zarr.json` of every store, in its attributes. The checksum covers the values, not the bytes: spaces
and the order of names may change.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import google_crc32c
from pydantic import ValidationError

#: Name of a document's own checksum: the SHA-256 (hex) of its canonical JSON without this entry.
CHECKSUM = "self_sha256"
#: Bytes of a CRC-32C, as Zarr's `crc32c` codec appends it.
CRC_BYTES = 4
#: Most mistakes of a document in a message.
_NAMED = 3


def sha256_of(data: Any) -> str:
    """Return the SHA-256 (hex) of bytes, or of an array's memory."""
    return hashlib.sha256(data).hexdigest()


def crc32c(data: Any) -> bytes:
    """Return the CRC-32C of bytes, or of an array's memory: 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def canonical_json(value: Any, allow_nan: bool = True) -> str:
    """Return the canonical text of a value: names sorted, no spaces, ASCII.

    Existing files hold hashes of it, so it must never change. Raise `ValueError` for NaN and
    infinity unless `allow_nan`.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)


def json_sha256(value: Any, allow_nan: bool = True) -> str:
    """Return the SHA-256 (hex) of a value's canonical JSON; raise as `canonical_json` does."""
    return sha256_of(canonical_json(value, allow_nan).encode())


def add_checksum(document: dict[str, Any], holder: dict[str, Any]) -> None:
    """Add the checksum of `document` to `holder`, the document itself or an object within."""
    holder.pop(CHECKSUM, None)
    holder[CHECKSUM] = json_sha256(document)


def fails_checksum(document: dict[str, Any], holder: dict[str, Any]) -> bool:
    """Return whether `document` fails its checksum.

    A document without a checksum is of an early version, and does not fail.
    """
    recorded = holder.pop(CHECKSUM, None)
    if recorded is None:
        return False
    found = json_sha256(document)
    holder[CHECKSUM] = recorded
    return bool(recorded != found)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; half of a surrogate pair is refused.

    Raise `ValueError` for invalid JSON; its message holds nothing of the text.
    """
    try:
        value = json.loads(text)
        if "\\ud" in (text if isinstance(text, str) else text.decode("latin-1")).lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair in a text") from None
    return value


def reasons(error: ValidationError) -> str:
    """Return which fields are wrong and why, on one line, without their values."""
    found = error.errors(include_url=False, include_input=False)
    texts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in found]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
