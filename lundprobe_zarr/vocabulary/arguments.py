"""Errors for unknown keyword arguments, with the right place or the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, TypeVar

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.vocabulary.suggest import suggestion

_P = ParamSpec("_P")
_R = TypeVar("_R")


def require_arguments(
    function: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str]
) -> None:
    """Raise `UsageError` for an argument that `function` does not accept.

    `elsewhere` maps some names to what to do instead. Otherwise, the nearest `known` name is given.
    """
    names = [n for n in known if n not in elsewhere]
    for name in given:
        if name in elsewhere:
            raise UsageError(f"{name}= is no argument of {function}: {elsewhere[name]}")
        if name not in names:
            raise UsageError(
                f"{name}= is no argument of {function}; {suggestion(name, names)}",
                expected="one of its documented arguments",
            )


def says_where(
    function: str, elsewhere: Mapping[str, str]
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a function so that an unknown argument raises as in `require_arguments`."""

    def around(inner: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return `inner`, with its arguments checked first."""
        kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        parameters = signature(inner).parameters.items()
        known = [n for n, p in parameters if p.kind in kinds and n != "self"]

        @wraps(inner)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            """Require known arguments, then call the function."""
            require_arguments(function, kwargs, known, elsewhere)
            return inner(*args, **kwargs)

        return call

    return around
