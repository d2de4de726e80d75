"""Parameters of a request's query string, checked: what is unknown or malformed gets status 422."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeVar

from starlette.requests import Request

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.vocabulary.suggest import suggestion

_C = TypeVar("_C", bound=str)
_WHOLE = re.compile(r"-?[0-9]{1,9}")
#: Characters of a value that a message repeats.
_SHOWN = 60


class Query:
    """The parameters of one request.

    Parameters
    ----------
    request : Request
        The request.
    known : sequence of str
        Parameters that its route has, besides `rev`. Raises `HttpError` (422) for another, and for
        one that is given twice.
    """

    def __init__(self, request: Request, known: Sequence[str]) -> None:
        self._given = dict(request.query_params)
        given = [name for name, _ in request.query_params.multi_items()]
        for name in given:
            if name not in (*known, "rev"):
                shown = name[:_SHOWN]
                raise invalid(f"Unknown parameter {shown!r}; {suggestion(shown, known)}.")
            if given.count(name) > 1:
                raise invalid(f"Parameter '{name}' is given {given.count(name)} times.")

    def text(self, name: str) -> str | None:
        """Return a text; None if it is not given, or empty."""
        return self._given.get(name) or None

    def choice(self, name: str, choices: Sequence[_C], default: _C) -> _C:
        """Return one of some texts."""
        value = self._given.get(name, default)
        for choice in choices:
            if value == choice:
                return choice
        raise invalid(
            f"Parameter '{name}' is {value[:_SHOWN]!r}; expected one of {', '.join(choices)}."
        )

    def whole(self, name: str) -> int | None:
        """Return a whole number; None if it is not given."""
        value = self.text(name)
        if value is None:
            return None
        if not _WHOLE.fullmatch(value):
            raise invalid(f"Parameter '{name}' is {value[:_SHOWN]!r}; expected a whole number.")
        return int(value)

    def words(self, name: str) -> list[str] | None:
        """Return texts separated by commas, each once; None if it is not given."""
        value = self.text(name)
        if value is None:
            return None
        return list(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))

    def numbers(self, name: str, counts: Sequence[int] = ()) -> list[float] | None:
        """Return finite numbers separated by commas, as many as one of `counts` or any.

        None if it is not given.
        """
        value = self.text(name)
        if value is None:
            return None
        try:
            found = [float(word) for word in value.split(",")]
        except ValueError:
            found = []
        if not found or not all(map(math.isfinite, found)) or (counts and len(found) not in counts):
            raise invalid(
                f"Parameter '{name}' is {value[:_SHOWN]!r}; expected {_how_many(counts)}."
            )
        return found


def _how_many(counts: Sequence[int]) -> str:
    if list(counts) == [1]:
        return "a number"
    return f"{' or '.join(map(str, counts)) or 'some'} numbers, separated by commas"


def invalid(message: str) -> HttpError:
    """Return the error for a parameter that is not valid."""
    return HttpError(422, message)
