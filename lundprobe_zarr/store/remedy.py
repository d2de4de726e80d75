"""What to do about a damaged store, as a command to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_STORE = re.compile(r"(.*)/patients/([^/]+)\.zarr(?![^/:])", re.DOTALL)


def convert_again(dataset: str, patients: Iterable[str]) -> str:
    """The command that converts these patients again, whatever is there of them."""
    ids = ",".join(patients)
    return f"lundprobe-zarr convert SOURCE {shlex.quote(dataset)} --patients {ids} --overwrite"


def remedy(where: str) -> str:
    """How to mend the store that `where`, a full name of it or of something in it, lies in."""
    found = _STORE.match(where)
    command = convert_again(*(found[1], [found[2]]) if found else ("DATASET", ["ID"]))
    return f"convert this patient again (`{command}`), or copy the store again"
