"""Draw docs/images/tour-terminal.svg: commands, and what they print of a seeded phantom.

`make tour` runs it. docs/images/tour-terminal.txt has the same as text, which a test compares with
what the commands print today.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 96
COMMANDS = (
    "lundprobe-zarr --quiet phantom lund-probe --patients 3 --extended 1",
    "lundprobe-zarr --quiet convert lund-probe my-dataset",
    "lundprobe-zarr query my-dataset \"protocol = 'newAcq' AND NOT missing_PenileBulb\"",
    'lundprobe-zarr query my-dataset "SELECT structure, round(avg(volume_cc)) AS mean_cc '
    "FROM clinical "
    'GROUP BY ALL ORDER BY mean_cc LIMIT 4"',
    "lundprobe-zarr dvh my-dataset newAcq_cba26d19714d0247 --metrics 'D98%,mean,V38.43Gy'",
    'lundprobe-zarr query my-dataset "CTV.volume_cc > 20"',
)
#: How long things took, which differs each time.
_DURATION = re.compile(r" in \d[\d.]*\s?(?:ms|s|min)\b")
#: Folders of one run.
_FOLDER = re.compile(r"/\S*/(?=(?:lund-probe|my-dataset)\b)")

Run = Callable[[list[str]], str]


def text(run: Run) -> str:
    """Return all commands and what `run` gets from each."""
    return "\n".join(session(run, command) for command in COMMANDS)


def session(run: Run, command: str) -> str:
    """Return a command and what it prints, without what differs each time."""
    printed = run(shlex.split(command)[1:]).strip("\n")
    return f"$ {command}\n{_FOLDER.sub('', _DURATION.sub('', printed))}\n"


def in_a_process(arguments: list[str]) -> str:
    """Run the command line in this folder."""
    ran = subprocess.run(
        [sys.executable, "-m", "lundprobe_zarr", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ran.stdout


def svg(shown: str) -> str:
    """Draw the text as a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=io.StringIO(), legacy_windows=False)
    for line in shown.splitlines():
        style = "bold cyan" if line.startswith("$ ") else "red" if line.startswith("error") else ""
        console.print(Text(line, style), soft_wrap=False)
    drawn = console.export_svg(title="lundprobe-zarr", unique_id="tour")
    # Rich names fonts of another host; the reader's own monospaced font does.
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


def main() -> None:
    """Run the commands in an empty folder; write the text and the picture."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shown = text(in_a_process)
        os.chdir("/")
    (IMAGES / "tour-terminal.txt").write_text(shown, encoding="utf-8")
    (IMAGES / "tour-terminal.svg").write_text(svg(shown), encoding="utf-8")
    print(f"{IMAGES / 'tour-terminal.svg'}: {(IMAGES / 'tour-terminal.svg').stat().st_size} bytes")


if __name__ == "__main__":
    main()
