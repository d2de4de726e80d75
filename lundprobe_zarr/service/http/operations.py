"""What an endpoint takes and gives: declared once, used to check requests and to describe them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.vocabulary.suggest import suggestion

#: A JSON schema.
Schema = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[Response]]
#: Most characters of a query, and of a name. A request's head is bounded too.
MOST_CHARACTERS = 20_000
_NAME_CHARACTERS = 200
_JSON = "application/json"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a query string.

    Attributes
    ----------
    name : str
        Its name.
    description : str
        What it means.
    required : bool
        Whether a request must have it.
    default : int or None
        Default of a whole number; None for texts.
    most : int or None
        Largest whole number, or most characters of a text.
    choices : tuple of str
        All values of a text, where they are known; otherwise empty.
    example : str or int or None
        A valid value.
    """

    name: str
    description: str
    required: bool = False
    default: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()
    example: str | int | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema."""
        if self.default is not None:
            bounds = {} if self.most is None else {"maximum": self.most}
            return {"type": "integer", "minimum": 0, "default": self.default, **bounds}
        if self.choices:
            return {"type": "string", "enum": list(self.choices)}
        return {"type": "string", "minLength": 1, "maxLength": self.most or _NAME_CHARACTERS}

    def read(self, text: str) -> str | int:
        """Return the value of a text. Raises `HttpError` (422) if it is none."""
        if self.default is not None:
            return self._number(text)
        most = self.most or _NAME_CHARACTERS
        if len(text) > most or not text.strip():
            raise invalid(
                f"Parameter '{self.name}' has {len(text)} characters; expected a text of 1 to "
                f"{most} that is not blank."
            )
        if self.choices and text not in self.choices:
            raise invalid(f"Parameter '{self.name}': {suggestion(text, self.choices)}.")
        return text

    def _number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise invalid(f"Parameter '{self.name}' is {text[:40]!r}; expected a whole number.")
        value = int(text)
        if self.most is not None and value > self.most:
            raise invalid(f"Parameter '{self.name}' is {value}; it must not exceed {self.most}.")
        return value


@dataclass(frozen=True)
class Operation:
    """What one method of a path takes and gives.

    Attributes
    ----------
    summary : str
        What it does, in a line.
    tag : str
        Group of the endpoint in the description.
    query : tuple of Parameter
        Parameters of the query string. Others are refused.
    body : mapping or None
        JSON schema of the request's body.
    answers : mapping of str to mapping
        JSON schema of the answer by media type.
    headers : mapping of str to str
        Headers of the answer with their meaning.
    errors : tuple of int
        Status of the errors beyond those of every endpoint.
    is_open : bool
        Whether it answers without a token.
    """

    summary: str
    tag: str
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    answers: Mapping[str, Schema] = field(default_factory=lambda: {_JSON: {"type": "object"}})
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    is_open: bool = False

    def __call__(self, handler: Handler) -> Handler:
        """Declare that `handler` is this operation."""
        handler.operation = self  # type: ignore[attr-defined]
        return handler

    def read_query(self, request: Request) -> dict[str, Any]:
        """Return the parameters of a request by name; None for a text that is absent.

        Raises `HttpError` (422) for a parameter that is missing, unknown, repeated or invalid.
        """
        given = request.query_params
        known = {p.name: p for p in self.query}
        for name in given:
            if name not in known:
                raise invalid(f"There is no parameter '{name[:40]}'; {suggestion(name, known)}.")
            if len(given.getlist(name)) > 1:
                raise invalid(f"Parameter '{name}' is given more than once.")
        found: dict[str, Any] = {}
        for parameter in self.query:
            text = given.get(parameter.name)
            if text is not None:
                found[parameter.name] = parameter.read(text)
            elif parameter.required:
                raise HttpError(
                    422, f"Parameter '{parameter.name}' is required", "MissingRequiredParameter"
                )
            else:
                found[parameter.name] = parameter.default
        return found


def invalid(message: str) -> HttpError:
    """Return the error for a parameter or field that is not valid."""
    return HttpError(422, message, "InvalidParameter")


def operation_of(route: Route) -> Operation | None:
    """Return what a route's handler declares; None if it declares nothing."""
    found: Operation | None = getattr(route.endpoint, "operation", None)
    return found
