"""The way into one's own service: a code that opens it once, and the cookie that it is changed for.

`lundprobe-zarr view` starts a service with a token and opens a browser. A token is never in a URL:
it would stay in the browser's history and in logs. The URL has a code instead. The first request
with the code gets the token, as a cookie that scripts cannot read; later ones are refused.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.access import token_sha256
from lundprobe_zarr.service.answers import HttpError
from lundprobe_zarr.service.session import token_cookie
from lundprobe_zarr.service.settings import Settings

#: Path of the entry, with the code as the parameter `code`.
ENTRY_PATH = "/enter"
#: Name of the setting, among the service's `options`, of the code's SHA-256 (hex) and the token.
ENTRY_OPTION = "entry"


def routes(settings: Settings) -> Sequence[BaseRoute]:
    """Return the route of the entry; none for a service that has no code."""
    if ENTRY_OPTION not in settings.options:
        return []
    entry = _Entry(settings.public_url, **settings.options[ENTRY_OPTION])
    return [Route(ENTRY_PATH, entry.enter)]


class _Entry:
    """A code that opens a service once."""

    def __init__(self, public_url: str, code_sha256: str, token: str) -> None:
        self._public_url = public_url
        self._code_sha256 = code_sha256
        self._token = token
        self._lock = threading.Lock()
        self._is_used = False

    async def enter(self, request: Request) -> Response:
        """Change the code for a cookie, and go to the page."""
        given = token_sha256(request.query_params.get("code", ""))
        with self._lock:
            fits = hmac.compare_digest(given, self._code_sha256) and not self._is_used
            self._is_used = self._is_used or fits
        if not fits:
            raise HttpError(
                403,
                "This link opens the page once. Start `lundprobe-zarr view` again for a new one.",
            )
        cookie = token_cookie(self._public_url, self._token)
        return RedirectResponse("/", 303, {"Cache-Control": "no-store", "Set-Cookie": cookie})
