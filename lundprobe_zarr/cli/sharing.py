"""How work on patients is shared out: options of `convert` and `measure`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lundprobe_zarr.errors import UsageError

Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes on this machine [default: one a core; none for little data]."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Address of a running dask scheduler, e.g. tcp://10.0.0.1:8786."),
]
Patients = Annotated[
    list[str] | None,
    typer.Option(metavar="ID[,ID...]", help="Only these patients; may be given several times."),
]
Part = Annotated[
    str | None,
    typer.Option(metavar="i/N", help="Only share i of N, for job arrays; then run `finalise`."),
]


def parse_share(text: str | None) -> tuple[int, int] | None:
    """Share `i/N` of a job array as two numbers."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UsageError(f"--part {text!r}", expected="i/N with 1 <= i <= N, e.g. 3/16")
    return int(match[1]), int(match[2])


def split_ids(given: list[str]) -> list[str]:
    """Patient ids given one by one or separated by commas, or both.

    Raises `UsageError` if something is given and holds no id: that must not mean all patients.
    """
    ids = [i.strip() for text in given for i in text.split(",") if i.strip()]
    if given and not ids:
        raise UsageError(
            f"--patients {given[0]!r}: no id in it",
            expected="ID[,ID...]",
            remedy="leave it out for all patients; is a variable of the shell not set?",
        )
    return ids
