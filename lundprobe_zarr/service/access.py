"""Who may have what: callers, their grants, and how a request proves who it is from."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

from lundprobe_zarr.service.answers import HttpError

#: How every token of ours begins, so that secret scanners know one.
TOKEN_PREFIX = "lp_"
_SECRET_BYTES = 32  # 256 bits


class Kind(StrEnum):
    """A kind of content. Stores are voxels: their metadata holds the NIfTI headers."""

    TABLES = "tables"
    VOXELS = "voxels"


#: Both kinds.
ALL_KINDS = frozenset(Kind)


@dataclass(frozen=True)
class Limits:
    """Limits of one caller; None is no limit.

    Attributes
    ----------
    requests : int or None
        Requests at a time, in each worker process.
    bytes_per_day : int or None
        Bytes sent a UTC day.
    sql_seconds : float or None
        Seconds of one SQL query; the service has its own upper limit.
    """

    requests: int | None = None
    bytes_per_day: int | None = None
    sql_seconds: float | None = None


@dataclass(frozen=True)
class Caller:
    """Who makes a request, and what they may have.

    Attributes
    ----------
    name : str
        Name of the token, or the identity that a proxy or a JWT states.
    datasets : frozenset of str or None
        Datasets (`owner/name`) with a grant; None is all of them.
    kinds : frozenset of Kind
        Kinds of content with a grant.
    limits : Limits
        Limits of this caller.
    is_known : bool
        False for everyone who comes without a token where the service is public.
    """

    name: str
    datasets: frozenset[str] | None = None
    kinds: frozenset[Kind] = ALL_KINDS
    limits: Limits = field(default_factory=Limits)
    is_known: bool = True

    def may(self, dataset: str, kind: Kind) -> bool:
        """Return whether the caller has a grant for a kind of content of a dataset."""
        return kind in self.kinds and (self.datasets is None or dataset in self.datasets)


class Access(Protocol):
    """A way to prove who a request is from."""

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Return who makes a request with these headers; None if they do not say.

        Raises `HttpError` (401) for a credential that is wrong, expired or revoked.
        """


def bearer(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the token of a request: a bearer, the password of HTTP basic authentication, a cookie.

    Raises `HttpError` (401) for another scheme.
    """
    given = headers.get(b"authorization")
    if given is None:
        return _in_cookie(headers)
    scheme, _, value = given.decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":  # what `https://user:token@host` becomes
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except ValueError:
            raise bad_credentials() from None
    raise bad_credentials()


def cookie_name(host: str) -> str:
    """Return the name of the cookie with the token of a browser that signed in at a host.

    Browsers send cookies to all ports of a host, so that two services would take turns in one name.
    """
    return "lundprobe-" + re.sub(r"[^a-z0-9]", "-", host.lower())


def _in_cookie(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the token of a browser that signed in; None without one."""
    given = headers.get(b"cookie")
    if given is None:
        return None
    try:
        found = SimpleCookie(given.decode("latin-1"))
    except CookieError:
        return None
    token = found.get(cookie_name(headers.get(b"host", b"").decode("latin-1")))
    return None if token is None else token.value


def bad_credentials(message: str = "") -> HttpError:
    """Return the error for a wrong token: its message begins as Hub clients expect."""
    text = "Invalid credentials in Authorization header"
    return HttpError(401, f"{text}: {message}" if message else text)


def new_token() -> str:
    """Return a new token: 256 random bits, URL-safe."""
    return TOKEN_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def token_sha256(token: str) -> str:
    """Return the SHA-256 (hex) of a token. A random token of 256 bits needs no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class OneToken:
    """Access with one token, made when the service starts and never stored."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Return the one caller. Raises like `Access.caller`."""
        token = bearer(headers)
        if token is None:
            return None
        if not hmac.compare_digest(token_sha256(token), self._sha256):
            raise bad_credentials()
        return Caller("start-token")


class Everyone:
    """Access for everyone, with a token or without: for public datasets."""

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller | None:
        """Return a caller who may have everything."""
        del headers  # a client may send the token of another hub
        return Caller("anyone", is_known=False)
