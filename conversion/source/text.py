"""Text of side files, as editors and spreadsheets leave it, and the numbers in it.

What a file says is never repeated in a reason: it may be a name.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be"]
#: Byte order marks, as Notepad and Excel write them, and what follows each.
_MARKS: tuple[tuple[bytes, Encoding], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
#: Blanks that editors leave about a number; no others are.
_BLANKS = " \t"


@dataclass(frozen=True)
class SideText:
    """A text file: its bytes, and its text without byte order mark, every line ended by LF.

    `encoding` is Python's name of the encoding that follows the mark, `utf-8` without one.
    """

    data: bytes
    text: str
    encoding: Encoding

    @property
    def marked(self) -> str:
        """The text with mark and line ends as they are: encoded, it is `data` again."""
        return self.data.decode(self.encoding)


def read_text(path: Path, most: int) -> SideText:
    """Read a text file of at most `most` bytes.

    Raises `OSError` if it cannot be read, `ValueError` with the reason if it is no such text.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    return decode_text(data)


def decode_text(data: bytes) -> SideText:
    """The text that bytes are: UTF-8, or UTF-16 with a byte order mark.

    Raises `ValueError` with the reason if they are neither.
    """
    found = [(mark, encoding) for mark, encoding in _MARKS if data.startswith(mark)]
    mark, encoding = found[0] if found else (b"", _MARKS[0][1])
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {encoding.upper()} text ({error})") from error
    return SideText(data, text.replace("\r\n", "\n").replace("\r", "\n"), encoding)


def parse_number(cell: str) -> float:
    """The finite decimal number that a cell is, blanks about it passed over.

    Digits are 0 to 9, with a point and an exponent as in C: no underscores, no other script's
    digits, no inf or NaN. Raises `ValueError` with the reason for anything else.
    """
    text = cell.strip(_BLANKS)
    if not _NUMBER.fullmatch(text):
        comma = "a decimal comma, for which a point was expected"
        raise ValueError(comma if _DECIMAL_COMMA.fullmatch(text) else "no number")
    number = float(text)
    if not isfinite(number):
        raise ValueError("a number that float64 cannot hold")
    return number
