"""The entrance: tokens of the access file, and people who sign in through OpenID Connect."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lundprobe_zarr.service.access.access_file import AccessList, SignIn, Token, read_access
from lundprobe_zarr.service.access.callers import (
    Access,
    Caller,
    Everyone,
    OneToken,
    bad_credentials,
    bearer,
    token_id,
    token_sha256,
)
from lundprobe_zarr.service.access.followed import Followed
from lundprobe_zarr.service.access.proxies import Proxies
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.settings import Settings

if TYPE_CHECKING:
    from lundprobe_zarr.service.access.oidc import Identity, JwtIdentity, StatedIdentity

#: Compared with where a token's id is not known, so that its answer takes no less time.
_NO_HASH = "0" * 64
_NOBODY = frozenset[str]()


class _Held(NamedTuple):
    """A token, the caller it lets in, and when it ends, seconds since 1970."""

    token: Token
    caller: Caller
    end: float


def _end_of(token: Token) -> float:
    if token.revoked is not None:
        return 0.0
    return math.inf if token.expires is None else token.expires.timestamp()


@dataclass(frozen=True)
class _Rules:
    """An access file, laid out for lookups."""

    listed: AccessList

    @cached_property
    def tokens(self) -> Mapping[str, _Held]:
        """Each token by its public id."""
        return {t.id: _Held(t, t.caller(t.name, t.id), _end_of(t)) for t in self.listed.tokens}

    def sign_in(self, identity: Identity) -> SignIn | None:
        """Return the entry for an identity: the one with its e-mail, else the first of a group.

        One entry decides, so that what a person may have can be read off the file.
        """
        email = identity.email.casefold() if identity.email else None
        for entry in self.listed.sign_ins:
            if email is not None and entry.email is not None and entry.email.casefold() == email:
                return entry
        groups = frozenset(identity.groups)
        return next((e for e in self.listed.sign_ins if e.group in groups), None)


def _read_rules(path: Path) -> _Rules:
    return _Rules(read_access(path))


class Entrance:
    """Access by the access file, which is followed while the service runs.

    Parameters
    ----------
    path : Path
        The access file. Raises `UsageError` like `read_access`.
    proxies : Proxies
        Whose statements of identity count.
    stated, signed : optional
        Ways to sign in.
    """

    def __init__(
        self,
        path: Path,
        proxies: Proxies,
        stated: StatedIdentity | None = None,
        signed: JwtIdentity | None = None,
    ) -> None:
        self._rules = Followed(path, _read_rules)
        self._proxies = proxies
        self._stated = stated
        self._signed = signed

    def caller(self, headers: Mapping[bytes, bytes], peer: str) -> Caller | None:
        """Return who makes a request: by token, by JWT, or as the proxy states.

        Raises like `Access.caller`.
        """
        token = bearer(headers)
        if self._signed is not None and (signed := self._signed.token(headers, token)):
            return self._signed_in(self._signed.identity(signed))
        if token is not None:
            return self._holder(token)
        if self._stated is not None and self._proxies.trusts(peer):
            identity = self._stated.identity(headers)
            return None if identity is None else self._signed_in(identity)
        return None

    def _holder(self, token: str) -> Caller:
        """Return the caller whom a token lets in."""
        found = self._rules.current().tokens.get(token_id(token))
        kept = _NO_HASH if found is None else found.token.sha256
        if not hmac.compare_digest(token_sha256(token), kept) or found is None:
            raise bad_credentials("no such token here")
        if time.time() >= found.end:
            over = found.token.end(datetime.now(UTC))
            raise bad_credentials(f"this token is over: {over}; ask for another")
        return found.caller

    def _signed_in(self, identity: Identity) -> Caller:
        """Return the caller for somebody who has signed in; without an entry they have no grant.

        Raises `HttpError` (403) if the entry is over.
        """
        entry = self._rules.current().sign_in(identity)
        if entry is None:
            return Caller(identity.name, _NOBODY, frozenset(), key=f"id:{identity.name}")
        if over := entry.end(datetime.now(UTC)):
            raise HttpError(403, f"The access of {identity.name} is over: {over}.", "GatedRepo")
        return entry.caller(identity.name, f"id:{identity.name}")


def access_of(settings: Settings, proxies: Proxies) -> Access:
    """Return the entrance that the settings name. Raises `UsageError` if it cannot be used."""
    if settings.access is None:
        if settings.public:
            return Everyone()
        assert settings.token_sha256 is not None
        return OneToken(settings.token_sha256)
    named = Entrance(Path(settings.access), proxies, *_sign_ins(settings))
    return Everyone(named) if settings.public else named


def _sign_ins(settings: Settings) -> tuple[StatedIdentity | None, JwtIdentity | None]:
    if settings.oidc is None:
        return None, None
    from lundprobe_zarr.service.access.oidc import JwtIdentity, StatedIdentity, read_oidc

    rules = read_oidc(Path(settings.oidc))
    return (
        StatedIdentity(rules.proxy) if rules.proxy else None,
        JwtIdentity(rules.jwt) if rules.jwt else None,
    )
