"""Read text and numbers of side files as written by editors and spreadsheets.

Error messages never quote the text: it may contain a name.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be"]
#: Byte order marks, as written by Notepad and Excel, and their encodings.
_MARKS: tuple[tuple[bytes, Encoding], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
#: Blanks that are allowed around a number.
_BLANKS = " \t"


@dataclass(frozen=True)
class SideText:
    """A text file: its bytes, and its text without byte order mark and with LF line ends.

    `encoding` is Python's name of the encoding given by the mark, `utf-8` without one.
    """

    data: bytes
    text: str
    encoding: Encoding

    @property
    def marked(self) -> str:
        """The text with its mark and line ends. Encoding it gives `data` again."""
        return self.data.decode(self.encoding)


def read_text(path: Path, most: int) -> SideText:
    """Read a text file of at most `most` bytes.

    Raises `OSError` if it cannot be read, `ValueError` with the reason if it is no valid text.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    return decode_text(data)


def decode_text(data: bytes) -> SideText:
    """Decode bytes as UTF-8, or as UTF-16 with a byte order mark.

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
    """Parse a finite decimal number; blanks around it are allowed.

    Digits are 0 to 9, with a point and an exponent as in C. Underscores, digits of other scripts,
    inf and NaN are refused. Raises `ValueError` with the reason for anything else.
    """
    text = cell.strip(_BLANKS)
    if not _NUMBER.fullmatch(text):
        comma = "a decimal comma, for which a point was expected"
        raise ValueError(comma if _DECIMAL_COMMA.fullmatch(text) else "no number")
    number = float(text)
    if not isfinite(number):
        raise ValueError("a number that float64 cannot hold")
    return number
