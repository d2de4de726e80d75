"""Progress of a command, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lundprobe_zarr.cli.verbosity import is_quiet


@contextmanager
def steps(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Give a function to call at every step: a bar on a terminal, elsewhere a line each."""
    from lundprobe_zarr.cli.console import console, say

    if is_quiet():
        yield lambda text: None
        return
    if not console().is_terminal:
        yield lambda text: say(text)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    with Progress(*columns, console=console(), expand=True, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda text: progress.advance(task)


@contextmanager
def steps_on_terminal(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show steps on a terminal only: elsewhere standard output holds data."""
    from lundprobe_zarr.cli.console import console

    if not console().is_terminal:
        yield lambda text: None
        return
    with steps(title, total) as step:
        yield step
