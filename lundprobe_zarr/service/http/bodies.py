"""JSON bodies of requests, bounded in size and time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.http.operations import Schema, invalid
from lundprobe_zarr.vocabulary.suggest import suggestion

#: Most bytes of a body, unless a route allows more. SQL that names all 467 patients has 13,000
#: characters.
MOST_BYTES = 65_536
#: Seconds for a body to arrive.
_SECONDS = 10.0
#: After such an error the rest of the body is on its way: the connection is of no more use.
_CLOSE = {"Connection": "close"}


async def read_fields(
    request: Request, schema: Schema, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """Return the fields of a JSON body that fits a flat schema, absent ones as their defaults.

    Raises `HttpError`: 413 if it is too large, 408 if it is too slow, 400 if it is no JSON, 422 if
    a field is missing, unknown or invalid.
    """
    found = _parsed(await _read(request, most_bytes))
    fields: Mapping[str, Schema] = schema["properties"]
    if not isinstance(found, dict):
        raise invalid(f"The body is no JSON object; expected one with {', '.join(fields)}.")
    for name in found:
        if name not in fields:
            raise invalid(f"There is no field {name[:40]!r}; {suggestion(name, fields)}.")
    for name in schema["required"]:
        if name not in found:
            raise HttpError(422, f"Field {name!r} is required.", "MissingRequiredParameter")
    return {
        name: _checked(name, found[name], field) if name in found else field.get("default")
        for name, field in fields.items()
    }


async def _read(request: Request, most_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most_bytes:
        raise _too_large(most_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS):
            async for piece in request.stream():
                data += piece
                if len(data) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise HttpError(
            408, f"The body took more than {_SECONDS:g} s to arrive.", headers=_CLOSE
        ) from None
    return bytes(data)


def _too_large(most_bytes: int) -> HttpError:
    return HttpError(413, f"The body has more than {most_bytes} bytes.", headers=_CLOSE)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise HttpError(
            400, 'The body is no JSON; expected an object such as {"sql": "SELECT 1"}.'
        ) from None


def _checked(name: str, value: Any, field: Schema) -> str | int:
    """Return a field's value. Raises `HttpError` (422) if it does not fit its schema."""
    if field["type"] == "string":
        if not isinstance(value, str):
            raise _unfit(name, value, "a text")
        if "\0" in value:
            raise invalid(f"Field {name!r} holds a null character.")
        _require_between(name, len(value), field["minLength"], field["maxLength"], " characters")
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise _unfit(name, value, "a whole number")
    _require_between(name, value, field["minimum"], field["maximum"], "")
    return value


def _unfit(name: str, value: Any, expected: str) -> HttpError:
    return invalid(f"Field {name!r} is {json.dumps(value)[:40]}; expected {expected}.")


def _require_between(name: str, size: int, least: int, most: int, unit: str) -> None:
    if not least <= size <= most:
        raise invalid(f"Field {name!r}: {size}{unit}; expected {least} to {most}{unit}.")
