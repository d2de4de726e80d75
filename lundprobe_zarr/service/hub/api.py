"""The Hugging Face Hub's API, as far as its unmodified clients ask for it. It is read-only.

Bytes of files are in `content`, what is said of a dataset in `repository`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.callers import Caller, Kind
from lundprobe_zarr.service.core import MAIN, caller_of, service_of
from lundprobe_zarr.service.datasets.published import Revision
from lundprobe_zarr.service.datasets.repository import Repository
from lundprobe_zarr.service.http.answers import (
    HttpError,
    json_answer,
    json_bytes,
    no_entry,
    no_repository,
)

_API = "/api/datasets"
_ONE = f"{_API}/{{owner}}/{{name}}"
#: Most entries of a tree in one answer; clients expect no more.
_MOST_ENTRIES = 1000
#: Most bytes of a request's body; a thousand paths have some 100 kB.
_MOST_BODY = 1 << 20
#: Fields that a dataset always has, whichever others a request chooses.
_ALWAYS = ("_id", "id")
#: How clients choose several values of one parameter, depending on the language they are in.
_LIST = "[]"
#: Paths by which clients would write.
_WRITES = (
    f"{_ONE}/preupload/{{rest:path}}",
    f"{_ONE}/commit/{{rest:path}}",
    "/api/repos/{rest:path}",
)
#: Paths that name other things than datasets.
_OTHERS = tuple(product(("models", "spaces"), ("", "/{rest:path}")))


def routes() -> list[BaseRoute]:
    """Return the routes of the Hub's API."""
    return [
        Route("/api/whoami-v2", _whoami),
        Route("/api/agent-harnesses", _harnesses),
        Route(_API, _datasets),
        Route(_ONE, _info),
        Route(f"{_ONE}/revision/{{rest:path}}", _info),
        Route(f"{_ONE}/tree/{{rest:path}}", _tree),
        Route(f"{_ONE}/paths-info/{{rest:path}}", _paths_info, methods=["POST"]),
        Route(f"{_ONE}/refs", _refs),
        Route(f"{_ONE}/commits/{{rest:path}}", _commits),
        Route(f"{_ONE}/auth-check", _auth_check),
        *(Route(path, _read_only, methods=["POST", "PUT", "DELETE"]) for path in _WRITES),
        *(Route(f"/api/{kind}/{{owner}}/{{name}}{rest}", _no_such_kind) for kind, rest in _OTHERS),
        Route("/{owner}/{name}/resolve/{rest:path}", _no_such_kind),
    ]


async def _whoami(request: Request) -> Response:
    """Say who the token belongs to."""
    caller = caller_of(request)
    if not caller.is_known:
        raise HttpError(401, "This service is open to everyone and knows nobody by name.")
    token = {"displayName": caller.name, "role": "read"}
    return json_answer(
        request,
        {
            "type": "user",
            "id": caller.name,
            "name": caller.name,
            "fullname": caller.name,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        },
    )


async def _harnesses(request: Request) -> Response:
    """Tell clients of the Hub that there is nothing of this kind; open to all."""
    return json_answer(request, {"standardEnvVars": [], "harnesses": {}})


@dataclass(frozen=True)
class _PathRequest:
    """What a path names: a dataset, a revision, and a path in it, each unquoted."""

    name: str
    revision: str = MAIN
    path: str = ""


def _requested(request: Request) -> _PathRequest:
    """Parse a request's path as it was sent: a revision and a path may hold quoted slashes."""
    parts = request.scope["raw_path"].decode("latin-1").split("/", 7)[3:]
    owner, name, _, revision, path = [unquote(part) for part in parts] + [""] * (5 - len(parts))
    return _PathRequest(f"{owner}/{name}", revision or MAIN, path.strip("/"))


def _revision(request: Request, requested: _PathRequest) -> Revision:
    """Return the revision that a request is for, and note it for the audit log.

    Lists of files go by the grant for tables. Raises `HttpError` as `Service.named_revision`.
    """
    visit: Visit = request.scope["visit"]
    visit.dataset, visit.path = requested.name, requested.path or None
    service = service_of(request)
    now = service.named_revision(
        caller_of(request), requested.name, Kind.TABLES, requested.revision
    )
    visit.sha = now.sha
    return now


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")


def _several(request: Request, name: str) -> list[str]:
    given = request.query_params
    return [v for key in (name, name + _LIST) for one in given.getlist(key) for v in one.split(",")]


def _whole(request: Request, name: str, default: int) -> int:
    """Return a parameter that is a whole number from 0 on. Raises `HttpError` (400)."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HttpError(400, f"{name}={text[:50]!r}: expected a whole number.")
    return int(text)


async def _datasets(request: Request) -> Response:
    """List the datasets of which the caller may have anything."""
    caller, given = caller_of(request), request.query_params
    words = [word.lower() for word in _several(request, "search")]
    wanted, author = set(_several(request, "filter")), given.get("author")
    found = []
    for published in service_of(request).published.values():
        repository = published.revision.repository
        if not _may_any(caller, repository.name) or author not in (
            None,
            repository.about["author"],
        ):
            continue
        if all(w in repository.name.lower() for w in words) and wanted <= set(repository.tags):
            found.append(repository)
    found = found[: _whole(request, "limit", len(found))]
    fields = _several(request, "expand")
    full = _flag(request, "full")
    return json_answer(request, [_listed(repository, fields, full) for repository in found])


def _may_any(caller: Caller, name: str) -> bool:
    return any(caller.may(name, kind) for kind in Kind)


def _listed(repository: Repository, fields: Iterable[str], full: bool) -> dict[str, Any]:
    if fields := list(fields):
        return _chosen(repository, fields)
    more = {"siblings": repository.siblings(sizes=False)} if full else {}
    return repository.about | more


def _chosen(repository: Repository, fields: Iterable[str]) -> dict[str, Any]:
    """Return the fields that a request chooses; those it does not know are left out."""
    wanted = {*_ALWAYS, *fields}
    found = {name: value for name, value in repository.about.items() if name in wanted}
    if "siblings" in wanted:
        found["siblings"] = repository.siblings(sizes=False)
    return found


async def _info(request: Request) -> Response:
    """Describe a dataset and name its files, with sizes and hashes if asked for `blobs`."""
    repository = _revision(request, _requested(request)).repository
    if fields := _several(request, "expand"):
        return json_answer(request, await asyncio.to_thread(_chosen, repository, fields))
    sizes = _flag(request, "blobs")
    name = "info_with_sizes" if sizes else "info"
    found = await asyncio.to_thread(getattr, repository, name)  # made once: 87,000 files take time
    return json_bytes(request, found.text, zipped=found.zipped)


async def _tree(request: Request) -> Response:
    """List a folder, or all below it, a thousand entries at a time."""
    requested = _requested(request)
    repository = _revision(request, requested).repository
    recursive, expand = _flag(request, "recursive"), _flag(request, "expand")
    start = _whole(request, "cursor", 0)
    most = max(1, min(_MOST_ENTRIES, _whole(request, "limit", _MOST_ENTRIES)))
    list_it = partial(repository.listing, requested.path, recursive, expand, start, most)
    page = await asyncio.to_thread(list_it)
    if page is None:
        raise no_entry(requested.name, requested.path, repository.sha)
    headers = {"X-Repo-Commit": repository.sha}
    if page.rest is not None:
        # Of this revision, so that the parts of a listing are of one. Never of the request's Host:
        # clients send their token there.
        base = f"{service_of(request).settings.public_url}{_API}/{requested.name}/tree/"
        path = f"{repository.sha}/{quote(requested.path, safe='')}".rstrip("/")
        given = {"recursive": recursive, "expand": expand, "limit": most, "cursor": page.rest}
        query = urlencode({k: str(v).lower() for k, v in given.items()})
        headers["Link"] = f'<{base}{path}?{query}>; rel="next"'
    return json_answer(request, page.entries, headers)


async def _paths_info(request: Request) -> Response:
    """Describe the files and folders that the body names; others are left out."""
    repository = _revision(request, _requested(request)).repository
    paths, expand = await _paths_of(request)
    found = await asyncio.to_thread(_entries, repository, paths, expand)
    return json_answer(request, found, {"X-Repo-Commit": repository.sha})


def _entries(repository: Repository, paths: Iterable[str], expand: bool) -> list[dict[str, Any]]:
    plain = dict.fromkeys(path.strip("/") for path in paths)
    return [repository.entry(path, expand) for path in plain if path and repository.has(path)]


async def _paths_of(request: Request) -> tuple[list[str], bool]:
    """Return the paths of a body, which is a form or JSON, and whether to say more of each.

    Raises `HttpError` (400, 413) for a body that is neither, or too large.
    """
    body = await _body(request)
    if "json" not in request.headers.get("content-type", ""):
        fields = parse_qsl(body.decode("utf-8", "replace"))
        expand = any(key == "expand" and value.lower() in ("true", "1") for key, value in fields)
        return [value for key, value in fields if key in ("paths", "paths" + _LIST)], expand
    try:
        given = json.loads(body)
        paths = given["paths"]
        if not all(isinstance(path, str) for path in paths):
            raise TypeError("a path that is no text")
        return list(paths), given.get("expand") is True
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise HttpError(400, 'The body is no JSON like {"paths": ["README.md"]}.') from None


async def _body(request: Request) -> bytes:
    """Return the body of a request. Raises `HttpError` (413) for one that is too large."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > _MOST_BODY:
            raise HttpError(413, f"The body is larger than {_MOST_BODY} bytes.")
    return bytes(found)


async def _refs(request: Request) -> Response:
    """Name the one branch there is."""
    now = _revision(request, _requested(request))
    branch = {"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": now.sha}
    return json_answer(
        request, {"branches": [branch], "converts": [], "tags": [], "pullRequests": []}
    )


async def _commits(request: Request) -> Response:
    """Name the one commit there is: what was before is not kept."""
    repository = _revision(request, _requested(request)).repository
    author = repository.about["author"]
    commit = repository.last_commit | {"message": "", "authors": [{"user": author}]}
    return json_answer(request, [commit])


async def _auth_check(request: Request) -> Response:
    """Say that the caller may have this dataset; if not, an error did."""
    _revision(request, _requested(request))
    return json_answer(request, {})


async def _read_only(request: Request) -> Response:
    """Refuse to write anything, whatever the caller may read."""
    raise HttpError(403, "This service is read-only: nothing can be uploaded, changed or deleted.")


async def _no_such_kind(request: Request) -> Response:
    """Say that there are only datasets here: the Hub's clients ask for a model by default."""
    owner, name = request.path_params["owner"], request.path_params["name"]
    if f"{owner}/{name}" not in service_of(request).published:
        raise no_repository(f"{owner}/{name}")
    raise HttpError(
        404,
        f"{owner}/{name} is a dataset here: say so, with repo_type='dataset' in Python, "
        "--repo-type dataset on the command line, or hf://datasets/ in a URL.",
        "RepoNotFound",
    )
