"""What the commands of the service share: its log, and how people sign in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from lundprobe_zarr.cli.verbosity import is_quiet
from lundprobe_zarr.errors import UsageError


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


def require_sign_in(oidc: Path | None, access: Path | None, proxies: Sequence[str]) -> None:
    """Require that signing in can work: `--oidc` needs what says who may have what.

    Raises `UsageError`.
    """
    if oidc is None:
        return
    from lundprobe_zarr.service.oidc import read_oidc

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
