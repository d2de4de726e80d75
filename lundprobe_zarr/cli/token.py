"""`token`: who may come in to a service, in its access file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.packages import require_packages

if TYPE_CHECKING:
    from lundprobe_zarr.service.access.access_file import Grant, SignIn, Token

_SPAN = re.compile(r"(\d{1,5})([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Content(StrEnum):
    """How much of a dataset somebody may have."""

    tables = "tables"
    voxels = "voxels"


class ListForm(StrEnum):
    """Form of the list."""

    table = "table"
    json = "json"


AccessFile = Annotated[
    Path, typer.Option("--access", metavar="FILE", help="The access file of the service.")
]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", metavar="OWNER/NAME", help="A dataset they may have, repeatedly [default: all]"
    ),
]
Kind = Annotated[
    Content | None,
    typer.Option(help="tables: nothing else; voxels: the stores too [default: voxels]"),
]
Expires = Annotated[
    str | None,
    typer.Option(metavar="SPAN|DATE", help="90d, 12h, 4w, or a last day, 2027-06-30, UTC."),
]
TermsAccepted = Annotated[
    bool, typer.Option("--terms-accepted", help="Record that they accepted the terms just now.")
]
Operator = Annotated[
    bool,
    typer.Option(
        "--operator",
        help="They may see /metrics and /status; data only with --dataset or --kind too.",
    ),
]
Requests = Annotated[int | None, typer.Option(min=1, help="Most requests at a time.")]
BytesPerDay = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most bytes a UTC day, e.g. 50GB.")
]
SqlSeconds = Annotated[float | None, typer.Option(help="Most seconds of one SQL query.")]


def add(
    name: Annotated[str, typer.Argument(help="Name of the token, for logs.")],
    access: AccessFile,
    email: Annotated[str | None, typer.Option(help="E-mail of the person who holds it.")] = None,
    dataset: Datasets = None,
    kind: Kind = None,
    expires: Expires = None,
    terms_accepted: TermsAccepted = False,
    operator: Operator = False,
    requests: Requests = None,
    bytes_per_day: BytesPerDay = None,
    sql_seconds: SqlSeconds = None,
) -> None:
    """Make a token and print it, once.

    Standard output has only the token; it is not stored. The access file is created if there is
    none. A running service accepts the token within a second.
    """
    require_packages()
    from lundprobe_zarr.service.access.access_file import add_token

    limits = _limits(requests, bytes_per_day, sql_seconds)
    grant = _grant(dataset, kind, expires, terms_accepted, operator, limits)
    token = add_token(access, name, email, grant)
    typer.echo(token)
    _tell(name, grant)


def grant(
    who: Annotated[str, typer.Argument(help="An e-mail address, or group:NAME.")],
    access: AccessFile,
    dataset: Datasets = None,
    kind: Kind = None,
    expires: Expires = None,
    terms_accepted: TermsAccepted = False,
    operator: Operator = False,
    requests: Requests = None,
    bytes_per_day: BytesPerDay = None,
    sql_seconds: SqlSeconds = None,
) -> None:
    """Give access to a person or a group by sign-in.

    They sign in through OpenID Connect: see `serve --oidc`.
    Only the entry with a person's e-mail counts; without one, the first entry of their groups.
    """
    require_packages()
    from lundprobe_zarr.service.access.access_file import add_sign_in

    limits = _limits(requests, bytes_per_day, sql_seconds)
    given = _grant(dataset, kind, expires, terms_accepted, operator, limits)
    add_sign_in(access, who, given)
    _tell(who, given)


def list_(
    access: AccessFile,
    form: Annotated[ListForm, typer.Option("--format", help="Form.")] = ListForm.table,
) -> None:
    """List tokens and sign-ins with their grants.

    Tokens cannot be shown: they are not stored.
    """
    require_packages()
    from lundprobe_zarr.cli.console import say, table
    from lundprobe_zarr.service.access.access_file import read_access

    found = read_access(access)
    entries = found.entries
    if form is ListForm.json:
        shown = [e.model_dump(mode="json", exclude={"sha256"}) for e in entries]
        typer.echo(json.dumps(shown, indent=2))
        return
    if not entries:
        say(f"{access} has no tokens. Make one with `lundprobe-zarr token add NAME --access FILE`.")
        return
    columns = ("name", "id", "state", "datasets", "content", "expires", "terms accepted", "limits")
    table(columns, [_row(entry) for entry in entries])


def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of a token, or who signs in.")],
    access: AccessFile,
) -> None:
    """Revoke a token or sign-in.

    A running service refuses it within a second.
    """
    require_packages()
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.service.access import access_file

    over = access_file.revoke(access, name)
    say(f"Revoked {over.name}.")


#: Each command with its examples; they run, in this order, in an empty folder.
COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("add", add, "token add reader-1 --access access.json --kind tables --expires 90d"),
    ("add", add, "token add prometheus --access access.json --operator"),
    ("grant", grant, "token grant group:radiotherapy --access access.json"),
    ("list", list_, "token list --access access.json"),
    ("revoke", revoke, "token revoke reader-1 --access access.json"),
)


def _grant(
    datasets: list[str] | None,
    kind: Content | None,
    expires: str | None,
    terms_accepted: bool,
    operator: bool,
    limits: dict[str, Any],
) -> Grant:
    """Return the grant that the options describe. Raises `UsageError`."""
    from lundprobe_zarr.service.access.access_file import Grant, checked, now_utc

    now = now_utc()
    fields: dict[str, Any] = {"created": now, "limits": limits}
    if datasets or (operator and kind is None):
        fields["datasets"] = tuple(datasets or ())
    if kind is Content.tables:
        fields["kinds"] = (Content.tables.value,)
    if operator:
        fields["operator"] = True
    if expires is not None:
        fields["expires"] = _end(expires, now)
    if terms_accepted:
        fields["terms_accepted"] = now
    return checked(Grant, fields)


def _end(text: str, now: datetime) -> datetime:
    """Return when a span or a day is over. Raises `UsageError`."""
    if span := _SPAN.fullmatch(text.strip()):
        found = now + timedelta(hours=int(span[1]) * _HOURS[span[2]])
    else:
        try:
            day = datetime.strptime(text.strip(), "%Y-%m-%d").date()
            found = datetime.combine(day, time(), UTC) + timedelta(days=1)
        except (ValueError, OverflowError):
            raise UsageError(
                f"--expires {text}", expected="a span such as 90d, or a day such as 2027-06-30"
            ) from None
    if found <= now:
        raise UsageError(f"--expires {text}: this is over", expected="a time to come")
    return found


def _limits(requests: int | None, bytes_per_day: str | None, seconds: float | None) -> Any:
    found = {"requests": requests, "bytes_per_day": None, "sql_seconds": seconds}
    if bytes_per_day is not None:
        size = _SIZE.fullmatch(bytes_per_day.strip())
        if size is None:
            raise UsageError(
                f"--bytes-per-day {bytes_per_day}", expected="a size such as 500MB or 50GB"
            )
        unit = 1024 if size[3] else 1000
        found["bytes_per_day"] = int(float(size[1]) * unit ** _POWERS[size[2].upper()])
    return {key: value for key, value in found.items() if value is not None}


def _tell(name: str, grant: Grant) -> None:
    """Say on standard error what was given: standard output has the token alone."""
    what = f"{name}: {_datasets(grant)}, {_content(grant)}, {_until(grant)}"
    typer.echo(what, err=True)
    if grant.terms_accepted is None and grant.datasets != ():
        typer.echo("It is not recorded that they accepted the terms: --terms-accepted.", err=True)


def _row(entry: Token | SignIn) -> tuple[str, ...]:
    from lundprobe_zarr.service.access.access_file import now_utc

    over = entry.end(now_utc())
    state = "revoked" if entry.revoked else "expired" if over else "in force"
    email = getattr(entry, "email", None)
    name = entry.name if email in (None, entry.name) else f"{entry.name} <{email}>"
    terms = entry.terms_accepted.strftime("%Y-%m-%d") if entry.terms_accepted else "–"
    return (
        name,
        getattr(entry, "id", "signs in"),
        state,
        _datasets(entry),
        _content(entry),
        _until(entry),
        terms,
        _limits_shown(entry),
    )


def _datasets(grant: Grant) -> str:
    if grant.datasets is None:
        return "all datasets"
    return ", ".join(grant.datasets) or "no data"


def _content(grant: Grant) -> str:
    content = "tables only" if Content.voxels.value not in grant.kinds else "voxels"
    parts = [] if grant.datasets == () else [content]
    return " and ".join([*parts, "operator"] if grant.operator else parts) or "–"


def _until(grant: Grant) -> str:
    return f"until {grant.expires:%Y-%m-%d %H:%M} UTC" if grant.expires else "for ever"


def _limits_shown(grant: Grant) -> str:
    from lundprobe_zarr.cli.console import size

    given = grant.limits
    shown = (
        f"{given.requests} at a time" if given.requests else "",
        f"{size(given.bytes_per_day)} a day" if given.bytes_per_day else "",
        f"SQL {given.sql_seconds:g} s" if given.sql_seconds else "",
    )
    return ", ".join(s for s in shown if s) or "–"
