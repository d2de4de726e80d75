"""Escape control characters of text from outside before it is shown on a terminal."""

from __future__ import annotations

import unicodedata

#: Control and format codes (such as bidirectional overrides), line separators, lone surrogates.
_UNSAFE = {"Cc", "Cf", "Zl", "Zp", "Cs"}


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
