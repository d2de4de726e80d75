"""A hash that a JSON document carries of itself, so that whoever reads it knows that it is whole.

The manifest has it, and the root `zarr.json` of every store, in its attributes. It is of what the
document says, not of its bytes: spaces and the order of names may change.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: SHA-256 (hex) of the document without this entry: as JSON, names sorted, without spaces.
SEAL = "self_sha256"


def seal(document: dict[str, Any], holder: dict[str, Any]) -> None:
    """Put the hash of `document` into `holder`, which is the document or an object within it."""
    holder.pop(SEAL, None)
    holder[SEAL] = _sha256(document)


def is_broken(document: dict[str, Any], holder: dict[str, Any]) -> bool:
    """Whether `document` is not the one that was sealed; False of one that never was.

    Those that early versions wrote were not.
    """
    said = holder.pop(SEAL, None)
    if said is None:
        return False
    found = _sha256(document)
    holder[SEAL] = said
    return bool(said != found)


def _sha256(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
