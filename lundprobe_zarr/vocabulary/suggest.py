"""Suggest known names for an unknown name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import ceil

from lundprobe_zarr.errors import UnknownLabelError
from lundprobe_zarr.vocabulary.names import STRUCTURE_TABLE, STRUCTURES

#: Most names that a message lists when none is near.
_LISTED = 12
#: Fewest letters for a match with a part of another name.
_PART = 3
#: Fraction of a name that must equal the beginning of another name for a match.
_BEGINS = 0.6


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of `known` that resemble `name`, the nearest first.

    Only letters and digits are compared; case is ignored. Names that contain `name` come first
    (CTVT_427 for `CTV`), then names of similar spelling. Without either, structures whose
    description has the word are returned (CTVT_427 for `prostate`), else names that begin alike.
    """
    names = list(dict.fromkeys(known))
    plain, wanted = {k: _plain(k) for k in names}, _plain(name)
    holding = [k for k in names if len(wanted) >= _PART and wanted in plain[k]]
    holding.sort(key=lambda k: (not plain[k].startswith(wanted), len(k)))
    by_lower = {k.lower(): k for k in names}
    alike = [by_lower[f] for f in get_close_matches(name.lower(), by_lower, count, cutoff=0.6)]
    close = list(dict.fromkeys((*holding, *alike)))
    return (close or _described(wanted, plain) or _beginning(wanted, plain))[:count]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _described(wanted: str, plain: Mapping[str, str]) -> list[str]:
    found = [s.label for s in STRUCTURE_TABLE if wanted in s.description.lower().split()]
    return [label for label in found if label in plain]


def _beginning(wanted: str, plain: Mapping[str, str]) -> list[str]:
    start = wanted[: max(_PART, ceil(_BEGINS * len(wanted)))]
    return [k for k, text in plain.items() if len(start) >= _PART and text.startswith(start)]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known names, or some."""
    names = list(known)
    close = nearest(name, names)
    if close:
        return f"nearest: {', '.join(close)}"
    listed = ", ".join(names[:_LISTED])
    return (
        f"there are {listed}{' …' if len(names) > _LISTED else ''}" if names else "there are none"
    )


def unknown_label(dim: str, label: object, known: Iterable[object]) -> UnknownLabelError:
    """Return the error for an unknown label of `dim`, with the nearest and all known labels."""
    names = [str(k) for k in known]
    close = nearest(label, names) if isinstance(label, str) else []
    hint = f"nearest: {', '.join(close)}; " if close else ""
    return UnknownLabelError(
        f"unknown {dim} {label!r}", remedy=f"{hint}expected one of {', '.join(names)}"
    )


def require_structure(structure: str) -> None:
    """Raise `UnknownLabelError` for an unknown structure, with the nearest known names."""
    if structure not in STRUCTURES:
        raise unknown_label("structure", structure, STRUCTURES)
