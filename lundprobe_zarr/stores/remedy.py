"""What to do about a damaged store, as a command to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_STORE = re.compile(r"(.*)/patients/([^/]+)\.zarr(?![^/:])", re.DOTALL)


def kind_options(precision: str, stripped: bool) -> str:
    """Options of `convert` that a dataset of this kind needs, each after a space."""
    precise = "" if precision == "standard" else f" --precision {precision}"
    return precise + (" --strip-headers" if stripped else "")


def convert_again(
    dataset: str, patients: Iterable[str], precision: str = "standard", stripped: bool = False
) -> str:
    """The command that converts these patients again, whatever is there of them."""
    ids, options = shlex.quote(",".join(patients)), kind_options(precision, stripped)
    place = shlex.quote(dataset)
    return f"lundprobe-zarr convert SOURCE {place} --patients {ids} --overwrite{options}"


def remedy(where: str) -> str:
    """How to mend the store that `where`, a full name of it or of something in it, lies in."""
    found = _STORE.match(where)
    command = convert_again(*(found[1], [found[2]]) if found else ("DATASET", ["ID"]))
    return f"convert this patient again (`{command}`), or copy the store again"
