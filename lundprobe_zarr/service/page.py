"""The page at `/`: its files, logging in and out, and the data it needs first.

The files are in `page/`. They say nothing of any dataset and need no token. All but `/` are below a
hash of all of them, so a browser keeps them for ever and never mixes two versions.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.access.session import (
    FRAMES_OPTION,
    no_cookies,
    require_own_page,
    token_cookie,
)
from lundprobe_zarr.service.core import LOG_IN, LOG_OUT, PAGE_FILES, caller_of, service_of
from lundprobe_zarr.service.datasets.published import Published
from lundprobe_zarr.service.gate import visit_of
from lundprobe_zarr.service.http.answers import HttpError, json_answer
from lundprobe_zarr.service.http.bodies import read_fields
from lundprobe_zarr.service.http.operations import Operation
from lundprobe_zarr.service.settings import Settings
from lundprobe_zarr.sql.predicate import FIELDS
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY, STRUCTURE_TABLE
from lundprobe_zarr.vocabulary.version import package_version

#: Only files, scripts, styles and pictures of this service; nothing within a text of the page.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors "
)
_FOR_EVER = "public, max-age=31536000, immutable"
_INDEX = "index.html"
#: What stands in `index.html` for the folder with all other files.
_PLACE = b"{{files}}"
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_TOKEN_BODY = {
    "type": "object",
    "required": ["token"],
    "additionalProperties": False,
    "properties": {"token": {"type": "string", "minLength": 1, "maxLength": 8_000}},
}
#: Characters that a cookie may hold (RFC 6265, 4.1.1), but for `"`; no token has others.
_COOKIE_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('",;\\')

_session = Operation("Say who is logged in, and which datasets they may have.", "page")


def routes() -> list[BaseRoute]:
    """Return the routes of the page."""
    files = [
        Route("/", _index),
        Route(f"{PAGE_FILES}{{version}}/{{file}}", _file),
        Route("/favicon.ico", _icon),
        Route(LOG_IN, _log_in, methods=["POST"]),
        Route(LOG_OUT, _log_out, methods=["POST"]),
    ]
    for route in files:
        route.include_in_schema = False  # for browsers alone
    return [*files, Route("/api/v1/session", session)]


@dataclass(frozen=True)
class _Static:
    """A file of the page, as it is sent."""

    content: bytes
    compressed: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class _Page:
    """All files of the page, by name, and the hash of all."""

    version: str
    files: Mapping[str, _Static]


@cache
def page() -> _Page:
    """Return the files of the page, which are read once."""
    contents = {
        file.name: file.read_bytes()
        for file in sorted(files(__package__).joinpath("page").iterdir(), key=lambda f: f.name)
        if file.is_file()
    }
    whole = hashlib.sha256()
    for name, content in contents.items():
        whole.update(b"%b\0%d\0%b" % (name.encode(), len(content), content))
    version = whole.hexdigest()[:16]
    contents[_INDEX] = contents[_INDEX].replace(_PLACE, f"page/{version}".encode())
    return _Page(version, {name: _static(name, content) for name, content in contents.items()})


def _static(name: str, content: bytes) -> _Static:
    ending = f".{name.rpartition('.')[2]}"
    media_type = _TYPES.get(ending) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _Static(content, gzip.compress(content, 9, mtime=0), media_type, etag)


def policy(settings: Settings) -> str:
    """Return the page's `Content-Security-Policy`."""
    return _POLICY + " ".join(settings.options.get(FRAMES_OPTION, ["'none'"]))


def _answer(request: Request, file: _Static, caching: str) -> Response:
    headers = {
        "Content-Security-Policy": policy(service_of(request).settings),
        "Cache-Control": caching,
        "ETag": file.etag,
        "Vary": "Accept-Encoding",
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, 200, headers, file.media_type)
    return Response(file.content, 200, headers, file.media_type)


async def _index(request: Request) -> Response:
    """Send the page itself, which names the files it belongs to."""
    return _answer(request, page().files[_INDEX], "no-cache")


async def _icon(request: Request) -> Response:
    """Send the icon to browsers that ask for it by its old name."""
    return _answer(request, page().files["icon.svg"], "max-age=86400")


async def _file(request: Request) -> Response:
    """Send one file of the version that the page names."""
    found = page().files.get(request.path_params["file"])
    if found is None or request.path_params["version"] != page().version:
        raise HttpError(404, "The page has no such file. Load it again.")
    return _answer(request, found, _FOR_EVER)


async def _log_in(request: Request) -> Response:
    """Keep a token in a cookie, if it is a token of this service."""
    service = service_of(request)
    url = service.settings.public_url
    require_own_page(dict(request.scope["headers"]), url)
    token = (await read_fields(request, _TOKEN_BODY))["token"].strip()
    if not _COOKIE_CHARACTERS.issuperset(token):
        raise HttpError(401, "This is no token: it has characters that no token has.")
    peer = request.client.host if request.client else ""
    try:
        caller = service.access.caller({b"authorization": f"Bearer {token}".encode()}, peer)
    except HttpError as error:
        raise HttpError(error.status, "This service knows no such token.") from error
    if caller is None or not caller.is_known:
        raise HttpError(401, "This service knows no such token.")
    visit_of(request).caller = caller.name
    headers = {"Set-Cookie": token_cookie(url, token), "Cache-Control": "no-store"}
    return json_answer(request, {"name": caller.name}, headers)


async def _log_out(request: Request) -> Response:
    """Remove the cookie, and what the browser has kept of patients."""
    settings = service_of(request).settings
    require_own_page(dict(request.scope["headers"]), settings.public_url)
    # Not "cookies": those of other services on this host would go too.
    headers = {"Cache-Control": "no-store", "Clear-Site-Data": '"cache"'}
    answer = json_answer(request, {}, headers)
    for cookie in no_cookies(settings):
        answer.headers.append("Set-Cookie", cookie)
    return answer


@_session
async def session(request: Request) -> Response:
    """Say who is logged in, which datasets they may have, and what the columns mean."""
    caller, service = caller_of(request), service_of(request)
    kinds = {
        name: [kind.value for kind in Kind if caller.may(name, kind)] for name in service.published
    }
    answer = {
        "name": caller.name,
        "is_known": caller.is_known,
        "version": package_version(),
        "url": service.settings.public_url,
        "datasets": [_about(service.published[name], k) for name, k in kinds.items() if k],
        "columns": _columns(),
        "structures": [
            {"name": s.label, "description": s.description, "optional": s.optional}
            for s in STRUCTURE_TABLE
        ],
        "prescription_gy": PRESCRIPTION_GY,
    }
    return json_answer(request, answer)


def _about(published: Published, kinds: list[str]) -> dict[str, Any]:
    manifest = published.revision.dataset.manifest
    return {
        "name": published.name,
        "title": manifest.name,
        "sha": published.revision.sha,
        "kinds": kinds,
        "patients": manifest.patients,
        "precision": manifest.precision,
        "synthetic": manifest.synthetic,
        "schema_version": manifest.schema_version,
        "created": manifest.created,
        "citation": manifest.citation,
        "access": manifest.access,
        "tables": sorted(manifest.tables),
    }


def _columns() -> dict[str, list[dict[str, str]]]:
    """Return what the page chooses columns from: of patients, and of one structure of each."""
    found = {
        "patients": TABLES["patients"].columns,
        "structure": tuple(c for c in TABLES["structures"].columns if c.name in FIELDS),
    }
    return {
        name: [
            {"name": c.name, "type": str(c.type), "unit": c.unit, "description": c.description}
            for c in columns
        ]
        for name, columns in found.items()
    }
