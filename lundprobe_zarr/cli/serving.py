"""What the commands of the service share: its log, and how people sign in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from lundprobe_zarr.cli.place import require_file
from lundprobe_zarr.cli.verbosity import is_quiet
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.service.access.exposure import Exposure
    from lundprobe_zarr.service.settings import Settings


class AccessLogForm(StrEnum):
    """Form of the lines that are printed of requests."""

    auto = "auto"
    color = "color"
    json = "json"
    none = "none"


def access_log_form(form: AccessLogForm) -> str:
    """Return the form for this standard output: `auto` is colour on a terminal, else none."""
    if form is not AccessLogForm.auto:
        return form.value
    shown = sys.stdout.isatty() and not is_quiet()
    return (AccessLogForm.color if shown else AccessLogForm.none).value


def log_level() -> int:
    """Return the level that `--verbose` asks for."""
    return logging.getLogger("lundprobe_zarr").level or logging.WARNING


@dataclass(frozen=True)
class Admission:
    """Who may come in to a service, and where is written who did.

    Attributes
    ----------
    access, audit, oidc : Path or None
        The access file, the audit log, and the file that says how people sign in.
    public : bool
        Whether everyone may come in without a token.
    allow_public : bool
        Whether they may read data of real patients.
    """

    access: Path | None
    audit: Path | None
    oidc: Path | None
    public: bool
    allow_public: bool

    @property
    def synthetic_only(self) -> bool:
        """Whether datasets of real patients are refused."""
        return self.public and not self.allow_public

    @property
    def needs_token(self) -> bool:
        """Whether the service makes a token itself: else nobody could come in."""
        return not self.public and self.access is None

    def check(self, exposure: Exposure) -> None:
        """Raise `UsageError` unless tokens are safe, sign-in works and the log can be written."""
        exposure.check(guarded=self.public or self.access is not None)
        _require_sign_in(self.oidc, self.access, exposure.trusted_proxies)
        require_file("--audit", self.audit)

    def applied(self, settings: Settings) -> Settings:
        """Return settings of a service that lets these in."""
        return replace(
            settings,
            access=absolute(self.access),
            audit=absolute(self.audit),
            oidc=absolute(self.oidc),
            public=self.public,
            synthetic_only=self.synthetic_only,
        )


def absolute(file: Path | None) -> str | None:
    """Return the absolute path of a file, for processes that may work in another folder."""
    return str(file.absolute()) if file else None


def _require_sign_in(oidc: Path | None, access: Path | None, proxies: Sequence[str]) -> None:
    """Require that signing in can work: `--oidc` needs what says who may have what.

    Raises `UsageError`.
    """
    if oidc is None:
        return
    from lundprobe_zarr.service.access.oidc import read_oidc

    if access is None:
        raise UsageError(
            "--oidc: who signs in may have nothing yet",
            remedy="give --access FILE too, made with `lundprobe-zarr token grant WHO`",
        )
    if read_oidc(oidc).proxy is not None and not proxies:
        raise UsageError(
            "--oidc: identity in a proxy's headers, and no proxy is trusted",
            where=oidc,
            remedy="name it with --trusted-proxy ADDRESS",
        )
