"""Translate DuckDB's messages into plain words.

DuckDB names its internal types and lists every overload of a function. Here each mistake becomes
one phrase that names the value. Other messages are passed on, cut short.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lundprobe_zarr.vocabulary.names import OBSERVERS, PARTS, PROTOCOLS, STRUCTURES, is_patient_id
from lundprobe_zarr.vocabulary.suggest import nearest

_SHOWN_CHARACTERS = 300
#: The start of a message: the class of DuckDB's error.
_KIND = re.compile(r"^[A-Z][\w ]* Error: ")
#: The end of a message: the line, and a caret below the mistake.
_POINTED = re.compile(r"\n(LINE \d+: )(.+)\n( *)\^")
#: Stands for what was left out of a line.
_CUT = "..."
_WHOLE = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?(_LITERAL)?|U?INT\d+")
_NUMBER = re.compile(r"DOUBLE|FLOAT|REAL|DECIMAL.*|NUMERIC")
_TEXT = re.compile(r"VARCHAR|STRING(_LITERAL)?|TEXT")
_TRUTH = re.compile(r"BOOL(EAN)?")
_WORDS = (
    (_WHOLE, "a whole number"),
    (_NUMBER, "a number"),
    (_TEXT, "text"),
    (_TRUTH, "true or false"),
)
#: Values of columns. Without quotes they look like column names.
_WRITTEN = (*PARTS, *PROTOCOLS, *OBSERVERS, "mri", "sct", "clinical", "nnunet")
_VALUES = {v.lower(): v for v in _WRITTEN}


def kind_in_words(kind: str) -> str:
    """Return a DuckDB type in plain words: `VARCHAR` is text."""
    if kind.startswith("STRUCT"):
        return "a whole structure"
    if kind.endswith("]"):
        return "a list"
    return next((words for pattern, words in _WORDS if pattern.fullmatch(kind)), kind)


def unquoted(name: str) -> str | None:
    """Return a message for a name that is a column's value without quotes; None if it is not."""
    value = name if is_patient_id(name) else _VALUES.get(name.lower())
    return None if value is None else f"no column {name!r}; a text takes single quotes: '{value}'"


def reason(message: str) -> str:
    """Return a DuckDB message in plain words, without its class and its excerpt of the query."""
    words = _KIND.sub("", " ".join(message.split("\nLINE ")[0].split()))
    for pattern, phrase in _PHRASES:
        found = pattern.match(words)
        if found and (text := phrase(found)):
            return text
    cut = re.sub(r"STRUCT\([^()]*\)", "STRUCT(…)", words)
    return cut if len(cut) <= _SHOWN_CHARACTERS else f"{cut[:_SHOWN_CHARACTERS]} …"


def position_of(message: str, text: str) -> int | None:
    """Return where in `text` a DuckDB message points to, in characters from 0; None if unknown.

    The message quotes the line, cut at both ends, with a caret below. Lines with other characters
    than ASCII are left alone: the caret does not count characters there.
    """
    found = _POINTED.search(message)
    if found is None or not found[2].isascii():
        return None
    quoted, caret = found[2], len(found[3]) - len(found[1])
    start = len(_CUT) if quoted.startswith(_CUT) else 0
    line = quoted[start:].removesuffix(_CUT)
    if text.count(line) != 1 or caret < start:
        return None
    return text.index(line) + caret - start


def _compared(found: re.Match[str]) -> str:
    return f"cannot compare {kind_in_words(found[1])} with {kind_in_words(found[2])}"


def _cast(found: re.Match[str]) -> str:
    where = f" (in {found[3]})" if found[3] else ""
    return f"'{found[1]}'{where} is not {kind_in_words(found[2])}"


def _arguments(found: re.Match[str]) -> str:
    given = [kind_in_words(k) for k in re.split(r", (?![^(]*\))", found[2]) if k]
    name = {"~~": "LIKE", "~~*": "ILIKE"}.get(found[1], found[1])
    return f"{name} cannot take {' and '.join(given) or 'no argument'}"


def _unknown_function(found: re.Match[str]) -> str:
    near = f"; nearest: {found[2]}" if found[2] else ""
    if not re.fullmatch(r"\w+", found[1]):
        return f"no operator {found[1]}{near}"
    return f"no function {found[1]!r}{near}"


def _unknown_column(found: re.Match[str]) -> str:
    name, candidates = found[1], re.findall(r'"(\w+)"', found[2])
    texts = nearest(name, STRUCTURES)
    quoted = f"; a text takes single quotes: {', '.join(map(repr, texts))}" if texts else ""
    close = nearest(name, candidates)
    near = f"; nearest: {', '.join(close)}" if close else ""
    return unquoted(name) or f"no column {name!r} in what is selected from{near}{quoted}"


_PHRASES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]], ...] = (
    (re.compile(r"Cannot compare values of type (.+?) and type (.+?) - an explicit"), _compared),
    (
        re.compile(
            r"Could not convert string '(.*)' to (\w+)(?: when casting from source column (\w+))?"
        ),
        _cast,
    ),
    (
        re.compile(r"Type VARCHAR with value '(.*)' can't be cast to the destination type ((.*))"),
        lambda found: f"'{found[1]}' is not {kind_in_words(found[2].partition(',')[0])}",
    ),
    (re.compile(r"No function matches the given name .* '(.+?)\((.*?)\)'\. You"), _arguments),
    (
        re.compile(r"(WHERE clause cannot contain .+)!"),
        lambda found: f"{found[1]}, which need several rows: use cohort.sql(...)",
    ),
    (
        re.compile(r"Unimplemented type for cast \((.+?) -> (.+?)\)"),
        lambda found: f"{kind_in_words(found[1])} cannot become {kind_in_words(found[2])}",
    ),
    (
        re.compile(r"Cannot deduce template type '\w+' in function: '(\w+)"),
        lambda found: f"{found[1]} was given values of incompatible types",
    ),
    (
        re.compile(r"\w+ Function with name (\S+) does not exist!(?: Did you mean \"(.+?)\"\?)?"),
        _unknown_function,
    ),
    (
        re.compile(r"Cannot extract field '(.+?)' from expression \"(.+?)\""),
        lambda found: f"{found[2]} has no {found[1]!r}",
    ),
    (
        re.compile(r"Referenced column \"(.+?)\" not found in FROM clause!(.*)"),
        _unknown_column,
    ),
)
