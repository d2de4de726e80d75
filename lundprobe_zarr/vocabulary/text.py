"""Text for people: control characters escaped, numbers of bytes in units."""

from __future__ import annotations

import unicodedata

#: Control and format codes (such as bidirectional overrides), line separators, lone surrogates.
_UNSAFE = {"Cc", "Cf", "Zl", "Zp", "Cs"}
_UNITS = ("B", "kB", "MB", "GB", "TB")


def escaped(text: str, keep: str = "\n\t") -> str:
    r"""Return `text` with control characters escaped (`\x1b`), except those in `keep`.

    A file name can then neither clear the screen nor look like another name.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _is_unsafe(c) else _escape(c) for c in text)


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def size(count: float) -> str:
    """Return a number of bytes in decimal units with three figures, such as `1.76 GB`."""
    for unit in _UNITS[:-1]:
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"
