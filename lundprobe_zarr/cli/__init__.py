"""The command line, `lundprobe-zarr`.

Modules here import the standard library and typer alone; whatever a command needs is imported
when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with `arguments` (default: the process's own) and exit."""
    from lundprobe_zarr.cli.app import app

    app(list(arguments) if arguments is not None else None, prog_name="lundprobe-zarr")
