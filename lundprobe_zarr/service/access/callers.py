"""Who may have what: callers, their grants, and how a request proves who it is from."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from lundprobe_zarr.service.http.answers import HttpError

#: How every token of ours begins, so that secret scanners know one.
TOKEN_PREFIX = "lp_"
_SECRET_BYTES = 32  # 256 bits
_ID_BYTES = 5
#: A token anywhere in a text.
_TOKEN = re.compile(r"lp_[0-9a-f]{10}_[\w-]{20,}")
#: Name of a dataset on a service.
DATASET_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


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
        Requests at a time.
    bytes_per_day : int or None
        Bytes sent a UTC day. An answer that has begun is sent to its end.
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
    is_operator : bool
        Whether the caller may see the figures of the service itself: `/metrics` and `/status`.
    key : str
        What the limits are counted by: the token's public id, or the identity. It outlives a
        restart, and no two callers share it.
    """

    name: str
    datasets: frozenset[str] | None = None
    kinds: frozenset[Kind] = ALL_KINDS
    limits: Limits = field(default_factory=Limits)
    is_known: bool = True
    is_operator: bool = False
    key: str = ""

    def may(self, dataset: str, kind: Kind) -> bool:
        """Return whether the caller has a grant for a kind of content of a dataset."""
        return kind in self.kinds and (self.datasets is None or dataset in self.datasets)


class Access(Protocol):
    """A way to prove who a request is from."""

    def caller(self, headers: Mapping[bytes, bytes], peer: str) -> Caller | None:
        """Return who makes a request with these headers; None if they do not say.

        `peer` is the address at the other end of the connection. Raises `HttpError` (401) for a
        credential that is wrong, expired or revoked.
        """


def bearer(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the token of a request: a bearer, or the password of HTTP basic authentication.

    Raises `HttpError` (401) for another scheme.
    """
    given = headers.get(b"authorization")
    if given is None:
        return None
    scheme, _, value = given.decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":  # what `https://user:token@host` becomes
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except ValueError:
            raise bad_credentials() from None
    raise bad_credentials()


_BAD_CREDENTIALS = "Invalid credentials in Authorization header"


def bad_credentials(message: str = "") -> HttpError:
    """Return the error for a wrong token.

    The header has the one text by which Hub clients know it: with any other they report a dataset
    that does not exist. The body says more.
    """
    text = f"{_BAD_CREDENTIALS}: {message}" if message else _BAD_CREDENTIALS
    return HttpError(401, text, headers={"X-Error-Message": _BAD_CREDENTIALS})


def new_token() -> str:
    """Return a new token: `lp_`, a public id, `_`, and 256 random bits, all URL-safe."""
    return f"{TOKEN_PREFIX}{secrets.token_hex(_ID_BYTES)}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def token_id(token: str) -> str:
    """Return the public id of a token, by which it is looked up; "" for another text."""
    return token[len(TOKEN_PREFIX) :].partition("_")[0] if token.startswith(TOKEN_PREFIX) else ""


def token_sha256(token: str) -> str:
    """Return the SHA-256 (hex) of a token. A random token of 256 bits needs no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def without_tokens(text: str) -> str:
    """Return a text for a log, with every token in it cut after its public id."""
    return _TOKEN.sub(lambda found: f"{found[0][:13]}_…", text) if TOKEN_PREFIX in text else text


class OneToken:
    """Access with one token, made when the service starts and never stored."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    def caller(self, headers: Mapping[bytes, bytes], peer: str) -> Caller | None:
        """Return the one caller. Raises like `Access.caller`."""
        del peer
        token = bearer(headers)
        if token is None:
            return None
        if not hmac.compare_digest(token_sha256(token), self._sha256):
            raise bad_credentials()
        return Caller("start-token", is_operator=True, key="start-token")


#: Everyone who comes without a token of ours where the service is public.
ANYONE = Caller("anyone", is_known=False, key="anyone")


class Everyone:
    """Access for everyone: for public datasets.

    A token of the access file, if there is one, names its caller, and an operator has the figures
    too. Everything else that a client sends is ignored: it may be the token of another hub.
    """

    def __init__(self, named: Access | None = None) -> None:
        self._named = named

    def caller(self, headers: Mapping[bytes, bytes], peer: str) -> Caller | None:
        """Return a caller who may have everything. Raises like `Access.caller`, for our tokens."""
        if self._named is None or not _is_ours(headers):
            return ANYONE
        found = self._named.caller(headers, peer)
        return ANYONE if found is None else replace(found, datasets=None, kinds=ALL_KINDS)


def _is_ours(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request has a token that this package made."""
    try:
        return (bearer(headers) or "").startswith(TOKEN_PREFIX)
    except HttpError:
        return False
