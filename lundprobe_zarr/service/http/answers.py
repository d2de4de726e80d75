"""Answers that are not data: errors in the form that Hugging Face's clients know, and JSON."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

#: Smallest JSON, bytes, that is compressed for clients that accept it.
_WORTH_COMPRESSING = 1000


class HttpError(Exception):
    """A request that is answered with an error.

    Attributes
    ----------
    status : int
        HTTP status.
    message : str
        What happened and what to do, for people. Never a token, a path of this machine or a
        traceback.
    code : str or None
        The error code that Hub clients look for in `X-Error-Code`.
    headers : mapping of str to str
        Further headers.
    details : mapping
        Further fields of the JSON.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    def response(self) -> Response:
        """Return the answer: JSON with `error`, and the headers that Hub clients read."""
        headers = {"X-Error-Message": header_text(self.message), **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        if self.status == 401:
            headers.setdefault("WWW-Authenticate", 'Bearer realm="lundprobe-zarr"')
        headers["Cache-Control"] = "no-store"
        content = json.dumps({"error": self.message, **self.details}).encode()
        return Response(content, self.status, headers, "application/json")


def header_text(text: str) -> str:
    """Return a text as a header may carry it: one line of printable ASCII."""
    plain = text.encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in plain)[:1000]


def no_repository(name: str) -> HttpError:
    """Return the error for a dataset that this service does not have."""
    return HttpError(404, f"There is no dataset {name!r} on this service.", "RepoNotFound")


def no_revision(name: str, revision: str, sha: str) -> HttpError:
    """Return the error for a revision that is not the one being served."""
    return HttpError(
        404,
        f"{name} has no revision {revision!r}. The revision served now is {sha}, also called "
        "'main'. An earlier one is not kept: open the dataset again.",
        "RevisionNotFound",
    )


def no_entry(name: str, path: str, sha: str) -> HttpError:
    """Return the error for a file that the dataset does not have."""
    return HttpError(404, f"{name} has no file {path!r}.", "EntryNotFound", {"X-Repo-Commit": sha})


def gated(name: str, how: str, known: bool) -> HttpError:
    """Return the error for a caller without the grant: 403, or 401 for one who is not known.

    `how` says how to apply for access.
    """
    status = 403 if known else 401
    return HttpError(status, f"Access to {name} is restricted. {how}", "GatedRepo")


def json_answer(
    request: Request, content: Any, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON, compressed if the client accepts gzip and it is worth it."""
    return json_bytes(request, json.dumps(content, separators=(",", ":")).encode(), headers)


def json_bytes(
    request: Request,
    content: bytes,
    headers: Mapping[str, str] | None = None,
    zipped: bytes | None = None,
) -> Response:
    """Return a JSON text like `json_answer`; `zipped` is the same text, if compressed already."""
    found = {"Vary": "Accept-Encoding, Authorization", "Cache-Control": "private, no-cache"}
    found |= headers or {}
    if len(content) >= _WORTH_COMPRESSING and "gzip" in request.headers.get("accept-encoding", ""):
        content = gzip.compress(content, 3) if zipped is None else zipped
        found["Content-Encoding"] = "gzip"
    return Response(content, 200, found, "application/json")
