"""Sign-in through OpenID Connect: a JWT that its issuer signed, or what a trusted proxy states."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from pydantic import BaseModel, ConfigDict, ValidationError

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import parse_json, reasons
from lundprobe_zarr.service.access.callers import bad_credentials
from lundprobe_zarr.service.access.followed import Followed

#: Signatures that are accepted. All are asymmetric: no key of the service could make one.
_ALGORITHMS = {"RS256", "ES256", "EdDSA"}
#: What a key must be for each of them (RFC 7518, section 6; RFC 8037, section 2).
_KEY_TYPES = {"RSA": None, "EC": "P-256", "OKP": "Ed25519"}
_LEAST_RSA_BITS = 2048
#: Seconds that clocks may differ by.
_LEEWAY = 30
#: Tokens whose signature need not be checked again.
_MOST_KEPT = 2048
_MOST_GROUPS = 500
_STRICT = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Identity:
    """Who somebody is, as a trusted party states.

    Attributes
    ----------
    name : str
        The e-mail or, without one, the issuer's name of the subject.
    email : str or None
        The e-mail; never one that the issuer calls unverified.
    groups : tuple of str
        Groups.
    """

    name: str
    email: str | None
    groups: tuple[str, ...] = ()


class ProxyHeaders(BaseModel):
    """Headers in which a trusted proxy states who somebody is, once they have signed in."""

    model_config = _STRICT

    email: str = "X-Forwarded-Email"
    groups: str | None = "X-Forwarded-Groups"


class JwtRules(BaseModel):
    """Which JWTs are accepted: their issuer, audience, keys and claims.

    `jwks` is the file of the issuer's public keys (RFC 7517); a relative path starts at the folder
    of the configuration. `header` holds the token, with or without `Bearer` before it.
    """

    model_config = _STRICT

    issuer: str
    audience: str
    jwks: str
    header: str = "Authorization"
    email_claim: str = "email"
    groups_claim: str = "groups"


class OidcRules(BaseModel):
    """Contents of the file of `serve --oidc`."""

    model_config = _STRICT

    proxy: ProxyHeaders | None = None
    jwt: JwtRules | None = None


def read_oidc(path: Path) -> OidcRules:
    """Return what the file of `serve --oidc` says. Raises `UsageError` if it is not one."""
    try:
        found = OidcRules.model_validate(parse_json(path.read_bytes()))
    except OSError as error:
        raise UsageError(f"--oidc: {error.strerror}", where=path, expected="a file") from error
    except ValidationError as error:
        raise UsageError(f"--oidc: {reasons(error)}", where=path) from None
    except ValueError as error:
        raise UsageError(f"--oidc: no JSON: {error}", where=path) from None
    if found.proxy is None and found.jwt is None:
        raise UsageError("--oidc: nothing is set", where=path, expected='"proxy", "jwt" or both')
    if found.jwt is None:
        return found
    keys = path.absolute().parent / found.jwt.jwks
    return found.model_copy(update={"jwt": found.jwt.model_copy(update={"jwks": str(keys)})})


class StatedIdentity:
    """The identity that a trusted proxy states in headers."""

    def __init__(self, rules: ProxyHeaders) -> None:
        self._email = rules.email.lower().encode()
        self._groups = rules.groups.lower().encode() if rules.groups else None

    def identity(self, headers: Mapping[bytes, bytes]) -> Identity | None:
        """Return the identity; None if the proxy states none. Only for requests of the proxy."""
        email = headers.get(self._email, b"").decode("utf-8", "replace").strip()
        if not email:
            return None
        stated = headers.get(self._groups, b"") if self._groups else b""
        groups = (g.strip() for g in stated.decode("utf-8", "replace").split(","))
        return Identity(email[:200], email[:200], tuple(g for g in groups if g)[:_MOST_GROUPS])


class JwtIdentity:
    """The identity in a JWT that the issuer signed for this service.

    The keys are read again when their file changes. Raises `UsageError` for a file without keys.
    """

    def __init__(self, rules: JwtRules) -> None:
        self._rules = rules
        self._header = rules.header.lower().encode()
        self._followed = Followed(Path(rules.jwks), _read_keys)
        self._keys = self._followed.current()
        self._kept: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    def token(self, headers: Mapping[bytes, bytes], bearer: str | None) -> str | None:
        """Return the JWT of a request, not yet checked; None if there is none."""
        if self._header == b"authorization":
            return bearer if bearer is not None and bearer.count(".") == 2 else None
        given = headers.get(self._header)
        return None if given is None else given.decode("latin-1").removeprefix("Bearer ").strip()

    def identity(self, token: str) -> Identity:
        """Return whose a JWT is. Raises `HttpError` (401) for one that is not accepted."""
        keys = self._followed.current()
        if keys != self._keys:  # a key may have been withdrawn
            self._keys = keys
            self._kept.clear()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        kept = self._kept.get(digest)
        if kept is not None and time.time() < kept[0]:
            return kept[1]
        claims = self._verified(token)
        found = self._identity(claims)
        self._kept[digest] = (float(claims["exp"]) + _LEEWAY, found)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return found

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            key = self._keys.named(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise bad_credentials("the key that signed this token is not known here")
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=sorted(_ALGORITHMS),
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise bad_credentials(f"the token is not accepted: {_shown(error)}") from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise bad_credentials("the token is not accepted: it is damaged") from None
        return claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        email = claims.get(self._rules.email_claim)
        if not isinstance(email, str) or claims.get("email_verified") not in (None, True, "true"):
            email = None
        groups = claims.get(self._rules.groups_claim, ())
        listed = groups.split() if isinstance(groups, str) else groups
        named = [g for g in listed if isinstance(g, str)] if isinstance(listed, list) else []
        name = email or claims.get("sub")
        if not isinstance(name, str) or not name:
            raise bad_credentials("the token names nobody: it has neither an e-mail nor a subject")
        return Identity(name[:200], email, tuple(named[:_MOST_GROUPS]))


def _shown(error: jwt.PyJWTError) -> str:
    """Return the reason, with nothing of the token in it."""
    known = {
        jwt.ExpiredSignatureError: "it has expired",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.ImmatureSignatureError: "it is not valid yet",
        jwt.InvalidSignatureError: "its signature is wrong",
        jwt.InvalidAlgorithmError: f"expected a signature by {', '.join(sorted(_ALGORITHMS))}",
        jwt.MissingRequiredClaimError: "it lacks exp, iss or aud",
    }
    return next((text for kind, text in known.items() if isinstance(error, kind)), "it is damaged")


@dataclass(frozen=True)
class _Keys:
    """The keys of a JWKS file by their ids; two are equal if the file is."""

    text: bytes
    by_id: Mapping[str, jwt.PyJWK] = field(compare=False)

    def named(self, name: str | None) -> jwt.PyJWK | None:
        """Return the key of this id; without an id, the only key."""
        if name is not None:
            return self.by_id.get(name)
        return next(iter(self.by_id.values())) if len(self.by_id) == 1 else None


def _read_keys(path: Path) -> _Keys:
    """Return the keys of a JWKS file for signatures that are accepted.

    Raises `UsageError`, with nothing of a key in it.
    """
    try:
        text = path.read_bytes()
        listed = [k for k in json.loads(text)["keys"] if _is_usable(k)]
        if any("d" in key for key in listed):
            raise UsageError(
                "the JWKS file holds a private key", where=path, expected="public ones"
            )
        keys = {str(k.get("kid", number)): jwt.PyJWK(k) for number, k in enumerate(listed)}
    except OSError as error:
        raise UsageError(f"the JWKS file cannot be read: {error.strerror}", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("the JWKS file is damaged", where=path, expected="RFC 7517") from None
    strong = {name: key for name, key in keys.items() if _is_strong(key)}
    if not strong:
        raise UsageError(
            "the JWKS file has no key that can be used",
            where=path,
            expected=f"a public key for {', '.join(sorted(_ALGORITHMS))}, RSA of 2048 bits or more",
        )
    return _Keys(text, strong)


def _is_usable(key: Mapping[str, Any]) -> bool:
    kind, curve = key["kty"], key.get("crv")
    return (
        kind in _KEY_TYPES
        and _KEY_TYPES[kind] in (None, curve)
        and key.get("use", "sig") == "sig"
        and key.get("alg") in (None, *_ALGORITHMS)
    )


def _is_strong(key: jwt.PyJWK) -> bool:
    return getattr(key.key, "key_size", _LEAST_RSA_BITS) >= _LEAST_RSA_BITS or key.key_type != "RSA"
