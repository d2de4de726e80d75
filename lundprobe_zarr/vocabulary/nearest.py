"""Which of the known names somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lundprobe_zarr.errors import UnknownLabelError

#: Names that a message lists in full when none is near; more are cut short.
_LISTED = 12


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `known` that resemble `name`, the nearest first, whatever the case."""
    by_lower = {k.lower(): k for k in known}
    found = get_close_matches(name.lower(), by_lower, count, cutoff=0.6)
    return [by_lower[f] for f in found]


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
    return UnknownLabelError(f"unknown {dim} {label!r}; {hint}expected one of {', '.join(names)}")
