"""Options by which several commands choose patients and names, and what they choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, overload

import typer

from lundprobe_zarr.cli.place import parse_options
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

Where = Annotated[
    str | None,
    typer.Option(
        metavar="SQL",
        help="Only patients for whom this condition is true, e.g. \"part = 'base'\".",
    ),
]
Structures = Annotated[
    str | None, typer.Option(metavar="NAME[,NAME...]", help="Structures [default: all].")
]


@overload
def names(option: str, text: str) -> tuple[str, ...]: ...


@overload
def names(option: str, text: str | None) -> tuple[str, ...] | None: ...


def names(option: str, text: str | None) -> tuple[str, ...] | None:
    """Return the names that an option lists, separated by commas; None without the option.

    Raises `UsageError` if something is given and holds no name: that must not mean all of them.
    """
    if text is None:
        return None
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise UsageError(
            f"{option} {text!r}: no name in it",
            expected="NAME[,NAME...]",
            remedy="is a variable of the shell not set?",
        )
    return found


def cohort_where(dataset: str, where: str | None, storage_options: str | None) -> Cohort:
    """Return the patients of a dataset for whom a condition is true; all without one."""
    from lundprobe_zarr.cohort import open_cohort

    cohort = open_cohort(dataset, parse_options(storage_options))
    return cohort if where is None else cohort.where(where)
