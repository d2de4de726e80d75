"""The access file: tokens and sign-ins, and what each may have. JSON, for its owner's eyes only.

It holds the SHA-256 of a token, never the token. `lundprobe-zarr token` changes it. A
running service also follows edits by hand within a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import parse_json, reasons
from lundprobe_zarr.service.access.callers import (
    ALL_KINDS,
    DATASET_NAME,
    Caller,
    Kind,
    Limits,
    new_token,
    token_id,
    token_sha256,
)
from lundprobe_zarr.storage.local import open_local, write_private
from lundprobe_zarr.vocabulary.suggest import suggestion

#: Names that the service gives to callers without a token of the file.
_TAKEN = ("anyone", "start-token")
_MOST_CHARACTERS = 200


def _named(text: str) -> str:
    if not text.isprintable() or text != text.strip() or not 0 < len(text) <= _MOST_CHARACTERS:
        raise ValueError(f"expected 1 to {_MOST_CHARACTERS} printable characters on one line")
    if text in _TAKEN:
        raise ValueError(f"{text!r} is what the service itself calls callers without a name")
    return text


def _email(text: str) -> str:
    name, at, host = _named(text).rpartition("@")
    if not (name and at and host) or " " in text:
        raise ValueError(f"{text!r} is no e-mail address")
    return text


def _dataset(text: str) -> str:
    if not DATASET_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no dataset's name, OWNER/NAME")
    return text


_Name = Annotated[str, AfterValidator(_named)]
_Email = Annotated[str, AfterValidator(_email)]
_Dataset = Annotated[str, AfterValidator(_dataset)]
_STRICT = ConfigDict(frozen=True, extra="forbid")


class LimitsGiven(BaseModel):
    """Limits of one caller, as `access.Limits`."""

    model_config = _STRICT

    requests: Annotated[int, Field(ge=1)] | None = None
    bytes_per_day: Annotated[int, Field(ge=1)] | None = None
    sql_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Grant(BaseModel):
    """What somebody may have, and for how long.

    Attributes
    ----------
    datasets : tuple of str or None
        Datasets (`owner/name`); None is all of the service.
    kinds : tuple of Kind
        Kinds of content.
    operator : bool
        Whether they may see `/metrics` and `/status`.
    limits : LimitsGiven
        Their limits.
    created, expires, terms_accepted, revoked : datetime or None
        When each happened or will happen; None is never.
    """

    model_config = _STRICT

    datasets: tuple[_Dataset, ...] | None = None
    kinds: tuple[Kind, ...] = tuple(Kind)
    operator: bool = False
    limits: LimitsGiven = LimitsGiven()
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    terms_accepted: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def caller(self, name: str, key: str) -> Caller:
        """Return the caller whom this grant lets in."""
        return Caller(
            name=name,
            datasets=None if self.datasets is None else frozenset(self.datasets),
            kinds=ALL_KINDS & frozenset(self.kinds),
            limits=Limits(**self.limits.model_dump()),
            is_operator=self.operator,
            key=key,
        )

    def end(self, now: datetime) -> str:
        """Return why the grant is over, for its holder; "" while it is in force."""
        if self.revoked is not None:
            return f"it was revoked on {self.revoked:%Y-%m-%d}"
        if self.expires is not None and now >= self.expires:
            return f"it expired on {self.expires:%Y-%m-%d %H:%M} UTC"
        return ""


class Token(Grant):
    """A token: its public id, its name, whose it is, its hash, and its grant."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{10}$")]
    name: _Name
    email: _Email | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SignIn(Grant):
    """Who may come in through OIDC: one person by e-mail, or the members of a group."""

    email: _Email | None = None
    group: _Name | None = None

    @property
    def name(self) -> str:
        """The e-mail, or `group:` and the group."""
        return self.email or f"group:{self.group}"


class AccessList(BaseModel):
    """Contents of an access file."""

    model_config = _STRICT

    format: Literal["lundprobe-zarr access"] = "lundprobe-zarr access"
    version: Literal[1] = 1
    tokens: tuple[Token, ...] = ()
    sign_ins: tuple[SignIn, ...] = ()

    @property
    def entries(self) -> tuple[Token | SignIn, ...]:
        """All tokens, then all sign-ins."""
        return (*self.tokens, *self.sign_ins)

    def dump(self) -> bytes:
        """Return the text of the file."""
        said = self.model_dump(mode="json")
        for kind in ("tokens", "sign_ins"):
            said[kind] = [_ordered(entry) for entry in said[kind]]
        return (json.dumps(said, indent=2) + "\n").encode()


def _ordered(entry: dict[str, object]) -> dict[str, object]:
    """Return an entry for people: who it is comes first, and what is not set is left out.

    `datasets` stays: null is all of them.
    """
    limits = entry["limits"]
    assert isinstance(limits, dict)
    first = {key: entry.get(key) for key in ("name", "id", "email", "group", "sha256")}
    found = first | entry | {"limits": {k: v for k, v in limits.items() if v is not None}}
    return {k: v for k, v in found.items() if v is not None or k == "datasets"}


def now_utc() -> datetime:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def read_access(path: Path) -> AccessList:
    """Return what an access file says.

    Raises `UsageError` if it cannot be read, others than its owner may read it, or it is damaged.
    """
    try:
        with os.fdopen(open_local(path), "rb") as file:
            _require_private(path, os.fstat(file.fileno()).st_mode)
            text = file.read()
    except OSError as error:
        raise UsageError(
            f"the access file cannot be read: {error.strerror}",
            where=path,
            remedy="make one with `lundprobe-zarr token add NAME --access FILE`",
        ) from error
    try:
        found = AccessList.model_validate(parse_json(text))
    except ValidationError as error:
        raise _damaged(path, reasons(error)) from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    _require_unique(path, found)
    return found


def _require_private(path: Path, mode: int) -> None:
    if mode & 0o077:
        raise UsageError(
            f"others than its owner may use the access file (mode {stat.S_IMODE(mode):04o})",
            where=path,
            expected="mode 0600",
            remedy=f"run `chmod 600 {path}`",
        )


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the access file is damaged: {why}",
        where=path,
        expected="JSON of version 1, as `lundprobe-zarr token` writes it",
    )


def _require_unique(path: Path, found: AccessList) -> None:
    for what, all_of in (
        ("id", [t.id for t in found.tokens]),
        ("name", [g.name.casefold() for g in found.entries]),
    ):
        most = Counter(all_of).most_common(1)
        if most and most[0][1] > 1:
            raise _damaged(path, f"two entries have the {what} {most[0][0]!r}")
    for grant in found.sign_ins:
        if (grant.email is None) == (grant.group is None):
            raise _damaged(path, "a sign-in needs an e-mail or a group, and not both")


@contextmanager
def _changing(path: Path) -> Iterator[AccessList]:
    """What the file says, while no other command changes it; a file that is not there is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read_access(path) if path.exists() else AccessList()
    finally:
        os.close(folder)


_G = TypeVar("_G", bound=Grant)


def add_token(path: Path, name: str, email: str | None, grant: Grant) -> str:
    """Add a token to an access file, which is made if there is none; return the token.

    Raises `UsageError` for a name that is taken, and like `read_access`.
    """
    token = new_token()
    fields = grant.model_dump(exclude_unset=True)
    fields |= {"id": token_id(token), "sha256": token_sha256(token), "name": name, "email": email}
    with _changing(path) as found:
        made = checked(Token, fields)
        _require_free(path, found, made)
        changed = found.model_copy(update={"tokens": (*found.tokens, made)})
        write_private(path, changed.dump())
    return token


def add_sign_in(path: Path, who: str, grant: Grant) -> None:
    """Let in who signs in with an e-mail, or the members of `group:NAME`. Raises as `add_token`."""
    is_group = who.startswith("group:")
    field = {"group": who.removeprefix("group:")} if is_group else {"email": who}
    with _changing(path) as found:
        made = checked(SignIn, grant.model_dump(exclude_unset=True) | field)
        _require_free(path, found, made)
        changed = found.model_copy(update={"sign_ins": (*found.sign_ins, made)})
        write_private(path, changed.dump())


def checked(kind: type[_G], fields: dict[str, object]) -> _G:
    """Return an entry with these fields. Raises `UsageError` for what it cannot be."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UsageError(reasons(error).replace("Value error, ", "")) from None


def _require_free(path: Path, found: AccessList, made: Token | SignIn) -> None:
    names = {g.name.casefold(): g for g in found.entries}
    there = names.get(made.name.casefold())
    if there is not None:
        over = " (which is revoked, and keeps its name: audit logs hold it)"
        raise UsageError(
            f"there is a {_noun(there)} {there.name!r} already{over if there.revoked else ''}",
            where=path,
            remedy="choose another name",
        )


def _noun(grant: Token | SignIn) -> str:
    return "token" if isinstance(grant, Token) else "sign-in"


def revoke(path: Path, name: str) -> Token | SignIn:
    """Revoke a token by its name or public id, or a sign-in by its name; return it, revoked.

    Raises `UsageError` if there is none, and like `read_access`.
    """
    with _changing(path) as found:
        for field in ("tokens", "sign_ins"):
            grants: tuple[Token | SignIn, ...] = getattr(found, field)
            for number, grant in enumerate(grants):
                if name in (grant.name, getattr(grant, "id", None)):
                    over = grant.model_copy(update={"revoked": grant.revoked or now_utc()})
                    changed = (*grants[:number], over, *grants[number + 1 :])
                    write_private(path, found.model_copy(update={field: changed}).dump())
                    return over
        known = [g.name for g in found.entries]
    raise UsageError(
        f"there is no token or sign-in {name!r}",
        where=path,
        remedy=suggestion(name, known) if known else "it has none at all",
    )
