"""Merge findings that differ only in patient, file or number."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: What may differ within a group: a patient, a file name after its folder, a number. Digits
#: within a name, such as CTVT_427, are no number.
_VARIES = re.compile(
    r"(?P<patient>(?:oldAcq|newAcq)_[0-9a-f]{16})"
    r"|(?P<file>(?<=[/ ])[^\s/:,]+\.[A-Za-z][\w.]*(?=$|[\s:,);]))"
    r"|(?P<number>(?<![\w.+-])-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?(?![\w.]*\w))"
)


def grouped(lines: Iterable[str]) -> list[str]:
    """Return one line for each folder and cause, in the order of first occurrence.

    A merged line names the first patient or file and counts the others. Numbers become a range.
    A line that is alone in its group is unchanged.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        cause = tuple(_VARIES.sub(lambda m: f"\0{m.lastgroup}\0", line).split("\0"))
        groups.setdefault(cause, []).append(line)
    return [_merged(members) for members in groups.values()]


def _merged(lines: list[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    columns = zip(*([m.group() for m in _VARIES.finditer(line)] for line in lines), strict=True)
    values = iter([_summary(list(dict.fromkeys(column))) for column in columns])
    return f"{_VARIES.sub(lambda _: next(values), lines[0])} ({len(lines)} findings)"


def _summary(values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    match = _VARIES.fullmatch(values[0])
    if match and match.lastgroup == "number":
        ordered = sorted(values, key=float)
        return f"{ordered[0]} to {ordered[-1]}"
    return f"{values[0]} and {len(values) - 1} more"
