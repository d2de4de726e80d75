"""Which of the known names somebody may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import ceil

from lundprobe_zarr.errors import UnknownLabelError
from lundprobe_zarr.vocabulary.names import STRUCTURE_TABLE, STRUCTURES

#: Names that a message lists in full when none is near; more are cut short.
_LISTED = 12
#: Letters from which on a name may be meant as part of another.
_PART = 3
#: Part of a name that has to begin as another does, for that to resemble it.
_BEGINS = 0.6


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `known` that resemble `name`, the nearest first.

    Case and what is no letter or digit do not count. First those that hold the name, such as
    CTVT_427 for `CTV`, then those spelt alike; if there is none, structures whose description has
    the word, such as CTVT_427 for `prostate`; and last those that begin so.
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
    """How a message goes on after naming an unknown name: the nearest real ones, or some."""
    names = list(known)
    close = nearest(name, names)
    if close:
        return f"nearest: {', '.join(close)}"
    listed = ", ".join(names[:_LISTED])
    return (
        f"there are {listed}{' …' if len(names) > _LISTED else ''}" if names else "there are none"
    )


def unknown_label(dim: str, label: object, known: Iterable[object]) -> UnknownLabelError:
    """The error for a label of `dim` that nobody has, with the nearest and all that there are."""
    names = [str(k) for k in known]
    close = nearest(label, names) if isinstance(label, str) else []
    hint = f"nearest: {', '.join(close)}; " if close else ""
    return UnknownLabelError(
        f"unknown {dim} {label!r}", remedy=f"{hint}expected one of {', '.join(names)}"
    )


def require_structure(structure: str) -> None:
    """Raise `UnknownLabelError`, naming the nearest real one, for a structure there is none of."""
    if structure not in STRUCTURES:
        raise unknown_label("structure", structure, STRUCTURES)
