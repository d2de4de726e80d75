"""The way into one's own service: a code that opens it once, and the cookie that it is changed for.

`lundprobe-zarr view` and notebooks start a service with a token, and open its page. A token is
never in a URL: it would stay in the browser's history, in logs and in saved notebooks. The URL has
a code instead. The first request with the code gets the token, as a cookie that scripts cannot
read; later ones are refused, but for a browser that has the cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.service.access.session import FRAMES_OPTION, cookie_token, token_cookie
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.page import policy
from lundprobe_zarr.service.settings import Settings

#: Path of the entry, with the code as the parameter `code`.
ENTRY_PATH = "/enter"
#: Name of the setting, among the service's `options`, of the `key` of codes and the `token`.
ENTRY_OPTION = "entry"


def new_code(key: str) -> str:
    """Return a code that opens a service with this key once: a number, and its HMAC-SHA-256."""
    number = secrets.token_hex(16)
    return f"{number}.{_proof(key, number)}"


def _proof(key: str, number: str) -> str:
    return hmac.new(key.encode(), number.encode(), hashlib.sha256).hexdigest()


def routes(settings: Settings) -> Sequence[BaseRoute]:
    """Return the route of the entry; none for a service that has no code."""
    if ENTRY_OPTION not in settings.options:
        return []
    entry = _Entry(settings, **settings.options[ENTRY_OPTION])
    return [Route(ENTRY_PATH, entry.enter)]


class _Entry:
    """Codes that each open a service once."""

    def __init__(self, settings: Settings, key: str, token: str) -> None:
        self._settings = settings
        self._key = key
        self._token = token
        self._lock = threading.Lock()
        self._used: set[str] = set()

    async def enter(self, request: Request) -> Response:
        """Change the code for a cookie, and go to the page; say in a frame too why not."""
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": policy(self._settings)}
        if self._takes(request.query_params.get("code", "")):
            headers["Set-Cookie"] = token_cookie(
                self._settings.public_url, self._token, self._is_foreign_frame(request)
            )
        elif not self._is_known(request):
            raise HttpError(
                403,
                "This link opens the page once. Start `lundprobe-zarr view` again, or run the cell "
                "of the notebook again, for a new one.",
                headers=headers,
            )
        # Relative: a proxy may have put the service below a path.
        return RedirectResponse("./", 303, headers)

    def _takes(self, code: str) -> bool:
        """Return whether a code is right and new; it is used now."""
        number, _, proof = code.partition(".")
        if not hmac.compare_digest(proof.encode(), _proof(self._key, number).encode()):
            return False
        with self._lock:
            is_new = number not in self._used
            self._used.add(number)
        return is_new

    def _is_known(self, request: Request) -> bool:
        found = cookie_token(dict(request.scope["headers"]), self._settings.public_url)
        return found is not None and hmac.compare_digest(found.encode(), self._token.encode())

    def _is_foreign_frame(self, request: Request) -> bool:
        """Return whether the page will be in a frame of a page of another site."""
        given = request.headers
        return (
            FRAMES_OPTION in self._settings.options
            and given.get("sec-fetch-dest") == "iframe"
            and given.get("sec-fetch-site") == "cross-site"
        )
