"""Answers that clients keep: entity tags made of contents, and compression that they accept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from numcodecs.zstd import compress
from starlette.requests import Request
from starlette.responses import Response
from zlib_ng import zlib_ng

from lundprobe_zarr.vocabulary.version import package_version

Coding = Literal["zstd", "gzip", "identity"]
#: Levels at which a plane of a million voxels takes some milliseconds; higher ones save few per
#: cent and take several times as long.
_ZSTD_LEVEL, _GZIP_LEVEL = 1, 1
_GZIP_HEADER = 31  # zlib's window bits of a gzip stream
_WORTH_COMPRESSING = 1000


class Kept:
    """How an answer about a revision may be kept, and whether the client holds it already.

    The entity tag is derived from the revision, which is a hash of all contents, the path, the
    parameters, the coding, the caller's grants, and the version of this package, whose answers may
    change. What does not `lasts`, as no revision covers it, is never kept.
    """

    def __init__(
        self, request: Request, sha: str, public: bool, grants: str = "", lasts: bool = True
    ) -> None:
        self.coding = coding_of(request.headers.get("accept-encoding", ""))
        self._request = request
        asked = sorted((k, v) for k, v in request.query_params.multi_items() if k != "rev")
        what = [package_version(), sha, request.url.path, asked, self.coding, grants]
        self._tag = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
        scope = "public" if public else "private"
        is_fixed = request.query_params.get("rev") == sha
        self.headers = {
            "ETag": f'"{self._tag}"',
            "X-Repo-Commit": sha,
            "Vary": "Accept-Encoding, Authorization, Cookie",
            "Cache-Control": f"{scope}, max-age=31536000, immutable"
            if is_fixed
            else f"{scope}, no-cache",
        }
        self._lasts = lasts
        if not lasts:
            del self.headers["ETag"]
            self.headers["Cache-Control"] = "no-store"

    @property
    def is_held(self) -> bool:
        """Whether the client names the tag in `If-None-Match` (RFC 9110, section 13.1.2)."""
        if not self._lasts:
            return False
        listed = self._request.headers.get("if-none-match", "").split(",")
        tags = {tag.strip().removeprefix("W/") for tag in listed}
        return "*" in tags or self.headers["ETag"] in tags

    def not_modified(self) -> Response:
        """Return the answer for a client that holds it."""
        return Response(status_code=304, headers=self.headers)

    def data(
        self,
        content: bytes,
        media: str,
        headers: Mapping[str, str] | None = None,
        is_packed: bool = False,
    ) -> Response:
        """Return bytes, compressed unless they are `is_packed` already. Call it in a thread."""
        found = self.headers | dict(headers or {})
        if self.coding != "identity" and not is_packed and len(content) >= _WORTH_COMPRESSING:
            content = _compressed(content, self.coding)
            found["Content-Encoding"] = self.coding
        return Response(content, 200, found, media)

    def json(self, content: Any, is_whole: bool = True) -> Response:
        """Return JSON. What is not `is_whole`, as something was damaged, is not kept."""
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        answer = self.data(text.encode(), "application/json")
        if not is_whole and self._lasts:
            answer.headers["Cache-Control"] = "no-store"
            del answer.headers["ETag"]
        return answer


def coding_of(accepted: str) -> Coding:
    """Return the content coding for an `Accept-Encoding` (RFC 9110, section 12.5.3)."""
    weights: dict[str, float] = {}
    for item in accepted.split(","):
        name, _, parameters = item.strip().lower().partition(";")
        weights[name.strip()] = _weight(parameters.strip())
    if weights.get("zstd", 0.0) > 0:
        return "zstd"
    return "gzip" if weights.get("gzip", 0.0) > 0 else "identity"


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 0.0


def _compressed(content: bytes, coding: Coding) -> bytes:
    if coding == "zstd":
        return bytes(compress(content, _ZSTD_LEVEL))
    packer = zlib_ng.compressobj(_GZIP_LEVEL, zlib_ng.DEFLATED, _GZIP_HEADER)
    return bytes(packer.compress(content) + packer.flush())
