"""Rules of quality control, as data: `rules.json` has those of this package.

A rule is a SELECT that has a row for whatever it checks, with these columns:

- `patient_id`: whose it is;
- `flagged`: true where the rule is broken, null where it cannot be said; without this column every
  row breaks the rule;
- `value` and `limit`: numbers, for people and histograms; optional;
- any others, for the message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import parse_json, reasons
from lundprobe_zarr.vocabulary.suggest import suggestion

Severity = Literal["error", "warning", "info"]
#: Severities, the gravest first.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
#: How a message may format a column: nothing that makes it long.
_FORMAT = re.compile(r"[<>^=]?[+ -]?\d{0,2},?(\.\d{1,2})?[a-z%]?")
_NAME = r"^[a-z0-9][a-z0-9-]*$"


def _joined(sql: Any) -> Any:
    """Return lines of SQL as one text: JSON has no text of several lines."""
    lines = isinstance(sql, list) and all(isinstance(line, str) for line in sql)
    return "\n".join(sql) if lines else sql


#: SQL as a text, or a list of its lines.
Sql = Annotated[str, BeforeValidator(_joined), Field(min_length=1)]


class Rule(BaseModel):
    """A rule of quality control.

    Attributes
    ----------
    id : str
        Lower-case letters, digits and hyphens. A rule replaces an earlier one of the same id.
    severity : {'error', 'warning', 'info'}
        How grave it is to break it.
    title : str
        What holds where the rule is kept.
    sql : str
        The SELECT that checks it; the module says which columns it has.
    message : str
        What is said of a row that breaks it. `{column}` stands for a column of the row, and
        `{column:.1f}` for a number with one decimal.
    citation : str
        Where the limit is from.
    quantity, unit : str
        Name and unit of `value`, for the axis of its histogram. Without a name none is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=_NAME, max_length=60)
    severity: Severity
    title: str = Field(min_length=1)
    sql: Sql
    message: str = Field(min_length=1)
    citation: str = ""
    quantity: str = ""
    unit: str = ""

    def message_about(self, row: Mapping[str, Any]) -> str:
        """Return the message about a row. Raises `ValueError` if it does not fit the columns."""
        return "".join(_parts(self.message, row))


def _parts(template: str, row: Mapping[str, Any]) -> Iterable[str]:
    # Not str.format, which would follow attributes of values: a rule may be somebody else's.
    for literal, name, spec, conversion in Formatter().parse(template):
        yield literal
        if name is None:
            continue
        if name not in row:
            raise ValueError(
                f"its message names {{{name}}}, which its SQL does not select; it has "
                f"{', '.join(row)}"
            )
        if conversion or not _FORMAT.fullmatch(spec or ""):
            raise ValueError(f"its message formats {name} as {spec!r}; expected such as .1f")
        yield _formatted(name, row[name], spec or "")


def _formatted(name: str, value: Any, spec: str) -> str:
    if value is None:
        return "–"
    try:
        return format(value, spec) if spec else str(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"its message formats {name}, {value!r}, as {spec!r}: {error}") from None


class _Off(BaseModel):
    """An entry that turns an earlier rule off."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(pattern=_NAME)
    severity: Literal["off"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[Rule | _Off]


#: Rules to add to those of this package: a file of them, or the rules themselves.
Rules = str | os.PathLike[str] | Sequence[Rule | Mapping[str, Any]]


@cache
def shipped_rules() -> tuple[Rule, ...]:
    """Return the rules of this package, in their order."""
    text = files(__package__).joinpath("rules.json").read_text(encoding="utf-8")
    return _merged((), _parsed(parse_json(text), "rules.json"))


def rules_with(added: Rules | None) -> tuple[Rule, ...]:
    """Return the rules of this package with `added` ones.

    One of the same id takes the place of the earlier one, and one of severity `off` removes it.
    Raises `UsageError` for a file that cannot be read, and for what is no rule.
    """
    if added is None:
        return shipped_rules()
    if isinstance(added, str | os.PathLike):
        return _merged(shipped_rules(), _read(Path(added)))
    given = [r.model_dump() if isinstance(r, Rule) else r for r in added]
    return _merged(shipped_rules(), _parsed({"rules": given}, "rules"))


def _read(path: Path) -> list[Rule | _Off]:
    try:
        document = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            str(error.strerror), where=path, expected="a file of rules that can be read"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"not JSON ({error})", where=path, expected='rules as JSON: {"rules": [{"id": …}]}'
        ) from error
    return _parsed(document, str(path))


def _parsed(document: Any, where: str) -> list[Rule | _Off]:
    try:
        found = _Document.model_validate(document).rules
    except ValidationError as error:
        raise UsageError(
            f"not rules ({_reasons(document, error)})",
            where=where,
            expected="id, severity (error, warning, info or off), title, sql and message of each",
        ) from error
    ids = [rule.id for rule in found]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise UsageError(f"two rules {', '.join(twice)}", where=where, expected="an id each")
    return found


def _reasons(document: Any, error: ValidationError) -> str:
    """Return what is wrong with the first wrong entry alone, named by its id."""
    entries = document.get("rules") if isinstance(document, dict) else None
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        off = isinstance(entry, dict) and entry.get("severity") == "off"
        try:
            (_Off if off else Rule).model_validate(entry)
        except ValidationError as own:
            name = entry.get("id") if isinstance(entry, dict) else None
            return f"{name if isinstance(name, str) else f'number {number + 1}'}: {reasons(own)}"
    return reasons(error)


def _merged(known: Sequence[Rule], added: Iterable[Rule | _Off]) -> tuple[Rule, ...]:
    rules = {rule.id: rule for rule in known}
    for rule in added:
        if isinstance(rule, Rule):
            rules[rule.id] = rule
        elif rules.pop(rule.id, None) is None:
            raise UsageError(f"no rule {rule.id!r} to turn off", remedy=suggestion(rule.id, rules))
    return tuple(rules.values())
