"""The service's OpenAPI 3.1 description, made of its routes and of what their handlers declare."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.access.callers import Caller
from lundprobe_zarr.service.core import OPEN_PATHS, Service, caller_of, service_of
from lundprobe_zarr.service.http.answers import json_answer
from lundprobe_zarr.service.http.operations import Operation, Parameter, operation_of
from lundprobe_zarr.service.http.shapes import ERROR
from lundprobe_zarr.vocabulary.version import package_version

_PATH = "/api/openapi.json"
_PLACEHOLDER = re.compile(r"{(\w+)(?::\w+)?}")
_WHY = {
    400: "The body is no JSON.",
    401: "No token, or one that is wrong, expired or revoked.",
    403: "The token has no grant for this.",
    404: "No such dataset, revision, file, config or split. `X-Error-Code` says which.",
    405: "The path has no such method.",
    406: "No form of the answer is acceptable.",
    408: "The body took too long.",
    413: "The body or the result is too large.",
    416: "The range lies outside the file.",
    422: "A parameter, field or query is not valid; of SQL, `position` says where.",
    429: "The token's limit is reached. `Retry-After` says when to come again.",
    503: "The service is busy, or its storage failed. `Retry-After` says when to come again.",
}
#: Errors of every endpoint that needs a token.
_EVERYWHERE = (401, 403, 405, 429)
_TAGS = {
    "files": "Bytes of files.",
    "hub": "The API of the Hugging Face Hub, for its clients.",
    "viewer": "The API of the Hub's dataset viewer: tables as pages of rows.",
    "cohorts": "SQL over the tables, and cohorts.",
    "page": "What the page needs first.",
    "service": "The service itself.",
}
#: What is answered before routing.
_CONTENT = Operation(
    "Return a file, or a range of its bytes.",
    "files",
    answers={"*/*": {}},
    headers={
        "ETag": "Strong, made of the contents.",
        "X-Repo-Commit": "The revision that the file is of.",
        "Accept-Ranges": "`bytes`.",
    },
    errors=(404, 416, 503),
)
_CONTENT_PATH = "/datasets/{owner}/{name}/resolve/{revision}/{path}"

_openapi = Operation("Describe this API.", "service")


def routes() -> list[BaseRoute]:
    """Return the route of the description."""
    return [Route(_PATH, openapi)]


@_openapi
async def openapi(request: Request) -> Response:
    """Describe the API, with the names of the caller's datasets."""
    found = description(request.app.routes, service_of(request), caller_of(request))
    return json_answer(request, found)


def description(served: Iterable[BaseRoute], service: Service, caller: Caller) -> dict[str, Any]:
    """Return the OpenAPI document of routes; it names the datasets that the caller may have."""
    named = service.published
    names = [n for n in named if caller.datasets is None or n in caller.datasets]
    paths: dict[str, dict[str, Any]] = {}
    for path, methods, operation in _operations(served):
        there = paths.setdefault(path, {})
        for method in methods:
            there[method] = _described(path, method, operation, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lundprobe-zarr",
            "version": package_version(),
            "description": "Read-only access to converted LUND-PROBE datasets.",
        },
        "servers": [{"url": service.settings.public_url}],
        "security": [{"token": []}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
    }


def _operations(served: Iterable[BaseRoute]) -> Iterator[tuple[str, list[str], Operation]]:
    """Yield each path with its methods and what they declare."""
    yield _CONTENT_PATH, ["get", "head"], _CONTENT
    for route in served:
        assert isinstance(route, Route), f"{route!r} cannot be described"
        if not route.include_in_schema:
            continue
        methods = sorted(m.lower() for m in (route.methods or ()) if m != "HEAD")
        yield _PLACEHOLDER.sub(r"{\1}", route.path), methods, operation_of(route) or _plain(route)


def _plain(route: Route) -> Operation:
    """Return what the docstring of a handler says."""
    summary = (inspect.getdoc(route.endpoint) or route.name).partition("\n")[0]
    is_service = route.path in OPEN_PATHS and not route.path.startswith("/api/")
    # Any parameters and answers: what the Hub's clients rely on is tested with those clients.
    return Operation(summary, "service" if is_service else "hub", answers={"*/*": {}})


def _described(path: str, method: str, operation: Operation, names: list[str]) -> dict[str, Any]:
    is_open = path in OPEN_PATHS
    found: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_in_path(path, names), *(_in_query(p, names) for p in operation.query)],
        "responses": _responses(operation, is_open, method),
    }
    if is_open:
        found["security"] = []
    if operation.body is not None and method == "post":
        content = {"application/json": {"schema": operation.body}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _in_path(path: str, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in _PLACEHOLDER.findall(path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if names and name in ("owner", "name"):
            parts = {each.split("/")[name == "name"] for each in names}
            schema = {"type": "string", "enum": sorted(parts)}
        elif name == "revision":
            schema["example"] = "main"
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(parameter: Parameter, names: list[str]) -> dict[str, Any]:
    schema: dict[str, Any] = parameter.schema
    if names and parameter.name == "dataset":
        schema = {"type": "string", "enum": names}
    found: dict[str, Any] = {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.description,
        "schema": schema,
    }
    if parameter.example is not None:
        found["example"] = parameter.example
    return found


def _responses(operation: Operation, is_open: bool, method: str) -> dict[str, Any]:
    content = {media: {"schema": schema} for media, schema in operation.answers.items()}
    headers = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in operation.headers.items()
    }
    done: dict[str, Any] = {"description": operation.summary, "headers": headers}
    found: dict[str, Any] = {"200": done | ({"content": content} if method != "head" else {})}
    if operation is _CONTENT:
        found |= {"206": {**found["200"], "description": "A range of its bytes."}}
        found |= {"304": {"description": "The client holds it."}}
        found |= {"302": {"description": "It is at a signed URL of a bucket."}}
    codes = operation.errors if is_open else (*operation.errors, *_EVERYWHERE)
    found |= {str(code): _error(_WHY[code], method) for code in sorted(codes)}
    return found | {
        "4XX": _error("The request is wrong.", method),
        "5XX": _error("The service failed; its log says why.", method),
    }


def _error(description: str, method: str) -> Mapping[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    found: dict[str, Any] = {"description": description}
    if method != "head":
        found["content"] = {"application/json": {"schema": schema}}
    return found
