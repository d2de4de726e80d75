"""A browser's session: the token in a cookie that no script reads, and requests of our own page.

A browser sends a cookie with any site's request, so a request that a cookie or a proxy's log-in
proves, and that is no plain reading, must come from a page of this service: its `Origin` is this
service. `SameSite=Strict` keeps the cookie from other sites; other ports of this machine are not
other sites, so `Origin` is what counts.

A page of another site may hold the page of a notebook's own service in a frame, where browsers
withhold `Strict` cookies. That service gives a `Partitioned` cookie instead (CHIPS,
draft-cutler-httpbis-partitioned-cookies): browsers send it within that site's pages alone. It is
`Secure`: browsers take loopback addresses for secure, without TLS too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.settings import Settings

#: Name of the setting, among the service's `options`, of whose pages may hold the page in a frame:
#: a list of sources of `frame-ancestors` (CSP 3). Without it nobody's may.
FRAMES_OPTION = "frames"

#: Methods that only read.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ID_CHARACTERS = 8


def cookie_name(public_url: str) -> str:
    """Return the name of the cookie.

    Cookies know no ports: services on two ports of one machine need two names. `__Host-` makes
    browsers refuse one that was set without TLS or for a whole domain.
    """
    name = f"lundprobe-{hashlib.sha256(public_url.encode()).hexdigest()[:_ID_CHARACTERS]}"
    return f"__Host-{name}" if is_secure(public_url) else name


def is_secure(public_url: str) -> bool:
    """Return whether clients reach the service by TLS."""
    return public_url.startswith("https:")


def token_cookie(public_url: str, token: str, framed: bool = False) -> str:
    """Return the value of `Set-Cookie` that keeps a token until the browser is closed.

    `framed` makes it one for a frame in a page of another site.
    """
    return f"{cookie_name(public_url)}={token}; {_attributes(public_url, framed)}"


def no_cookies(settings: Settings) -> list[str]:
    """Return the values of `Set-Cookie` that remove the cookie, whichever it is."""
    url = settings.public_url
    kinds = (False, True) if FRAMES_OPTION in settings.options else (False,)
    return [f"{cookie_name(url)}=; Max-Age=0; {_attributes(url, framed)}" for framed in kinds]


def _attributes(public_url: str, framed: bool) -> str:
    if framed:
        return "Path=/; HttpOnly; SameSite=None; Secure; Partitioned"
    return "Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if is_secure(public_url) else "")


def with_credentials(
    method: str, headers: Mapping[bytes, bytes], public_url: str
) -> Mapping[bytes, bytes]:
    """Return a request's headers with the token of its cookie as a bearer, if it has no other.

    Raises `HttpError` (403) for a request that is no plain reading and that a browser made for
    another site's page, or that has a cookie and does not say whose page it is from.
    """
    given = headers.get(b"authorization")
    if given is not None:
        # A browser that asked for a password sends it along for any site's page, as a cookie.
        is_browsers = given[:6].lower() == b"basic " and b"origin" in headers
        if is_browsers and method not in _SAFE:
            require_own_page(headers, public_url)
        return headers
    token = cookie_token(headers, public_url)
    if method not in _SAFE and (token is not None or b"origin" in headers):
        require_own_page(headers, public_url)
    if token is None:
        return headers
    return {**headers, b"authorization": f"Bearer {token}".encode("latin-1", "replace")}


def require_own_page(headers: Mapping[bytes, bytes], public_url: str) -> None:
    """Raise `HttpError` (403) unless a page of this service made the request.

    The origin is the public one or, behind a forwarded port, the host that the request names.
    """
    origin = headers.get(b"origin", b"").decode("latin-1")
    host = headers.get(b"host", b"").decode("latin-1")
    own = urlsplit(public_url)
    given = urlsplit(origin) if origin.isprintable() else urlsplit("")
    if origin == f"{own.scheme}://{own.netloc}" or (given.netloc and given.netloc == host):
        return
    raise HttpError(
        403,
        "This request came from a page of another site, or did not say from which. A program "
        "gives its token in the header `Authorization: Bearer …`.",
    )


def cookie_token(headers: Mapping[bytes, bytes], public_url: str) -> str | None:
    """Return the token of a request's cookie; None without one."""
    given = headers.get(b"cookie")
    if given is None:
        return None
    try:
        found = SimpleCookie(given.decode("latin-1")).get(cookie_name(public_url))
    except CookieError:
        return None
    return found.value or None if found is not None else None
