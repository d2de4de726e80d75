"""What is written to the terminal: lines, tables and quantities for people to read.

Names of files and what a dataset says of itself may hold codes that a terminal would obey: they
are written out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lundprobe_zarr.vocabulary.text import escaped
from lundprobe_zarr.vocabulary.text import size as size

#: Lines that go into a file or pipe are never folded, whatever they hold.
_ANY_WIDTH = 1_000_000


@cache
def console() -> Console:
    """Standard output; colours and live displays only if it is a terminal."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    # In a pipe or file: no control codes, whatever the environment says, and no folding.
    return Console(
        highlight=False, force_terminal=False, no_color=True, width=_ANY_WIDTH, legacy_windows=False
    )


def say(text: str = "", style: str | None = None) -> None:
    """Print a line as it is: never folded, so that paths and commands can be copied."""
    console().print(Text(escaped(text), style or ""), soft_wrap=True)
    console().file.flush()


def heading(text: str) -> None:
    """Print the title of a section."""
    say()
    say(text, "bold")


def listing(lines: Iterable[str], most: int = 20) -> None:
    """Print lines indented, the first `most` of them and how many were left out."""
    for number, line in enumerate(shown := list(lines)):
        if number == most:
            say(f"  … and {len(shown) - most} more")
            return
        say(f"  {line}")


def failures(errors: Mapping[str, str | None], kind: str = "patient") -> None:
    """Print which patients or stores failed, each with its error; nothing without one."""
    if errors:
        heading(f"Failed: {count(len(errors), kind)}")
    for patient_id, error in errors.items():
        say(f"  {patient_id}", "red")
        say(f"    {error}")


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns; long values are folded on a terminal."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(escaped(name), "dim"), Text(escaped(value)))
    if grid.row_count:
        _show(grid)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table without lines; columns in `right` are aligned to the right."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            Text(escaped(column)), justify="right" if column in right else "left", overflow="fold"
        )
    for row in rows:
        grid.add_row(*(Text(escaped(cell)) for cell in row))
    _show(grid)


def _show(grid: Table) -> None:
    """Print a table; in a pipe or file without the blanks that pad its lines."""
    if console().is_terminal:
        console().print(grid)
        return
    with console().capture() as capture:
        console().print(grid)
    for line in capture.get().splitlines():
        say(line.rstrip())


def duration(seconds: float) -> str:
    """A span of time, such as `12 ms`, `1.4 s`, `48 s`, `3 min 20 s` or `5 h 12 min`."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(number: int, noun: str) -> str:
    """A number with its noun, such as `1 patient` or `3 patients`."""
    plural = noun if number == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {plural}"
