"""Text from elsewhere made fit to be shown: nothing in it that a terminal would obey."""

from __future__ import annotations

import unicodedata

#: Control codes, what turns the direction of writing about, separators of lines, halves of pairs.
_UNFIT = {"Cc", "Cf", "Zl", "Zp", "Cs"}


def escaped(text: str, keep: str = "\n\t") -> str:
    r"""`text` with `\x1b` and the like written out, but for the characters in `keep`.

    So a file's name cannot clear the screen, or look like another one.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not _is_unfit(c) else _written_out(c) for c in text)


def _is_unfit(character: str) -> bool:
    return unicodedata.category(character) in _UNFIT


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
