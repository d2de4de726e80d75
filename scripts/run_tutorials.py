"""Execute docs/tutorials/*.py as notebooks, and write pages with their outputs.

    python scripts/run_tutorials.py [NAME…]

Each runs in a kernel and a folder of its own; an error in a cell ends the run. The pages and their
pictures go to build/tutorials, from which the site takes them. A tutorial is a Python file in
Jupytext's percent format: Jupyter opens it as a notebook.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
SOURCE, MADE = ROOT / "docs" / "tutorials", ROOT / "build" / "tutorials"
MOST_SECONDS = 180
#: What terminals show and pages do not: colours, cursor movements.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_STYLE = re.compile(r"<style.*?</style>\s*", re.DOTALL)


def run(path: Path) -> float:
    """Execute a tutorial and write its page; return how long it took, in seconds."""
    notebook = jupytext.read(path)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=MOST_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        ).execute()
        seconds = time.monotonic() - started
    MADE.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_page(notebook, path)).replace(f"{folder}/", "").replace(f"{ROOT}/", "")
    (MADE / f"{path.stem}.md").write_text(text, encoding="utf-8")
    return seconds


def _page(notebook: Any, path: Path) -> Iterator[str]:
    """Yield the Markdown of an executed notebook, cell by cell."""
    title, *cells = notebook.cells
    first, _, rest = title.source.partition("\n")
    offer = f"*This page is [{path.name}]({path.name}), executed when it was built.*"
    yield f"{first}\n\n{offer}\n{rest}\n"
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            yield f"{cell.source}\n"
        else:
            yield _code(cell.source)
            for part, output in enumerate(cell.outputs):
                yield _output(output, f"{path.stem}-{number}-{part}")


def _code(source: str) -> str:
    lines = source.splitlines()
    if all(line.startswith("!") for line in lines):
        return _fenced("console", "\n".join(f"$ {line[1:]}" for line in lines))
    return _fenced("python", source)


def _output(output: Any, name: str) -> str:
    """Write what a cell printed, returned or drew."""
    data = output.get("data", {})
    if "image/png" in data:
        (MADE / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
        return f"![What the code above draws]({name}.png)\n"
    if "<table" in data.get("text/html", ""):
        table = _STYLE.sub("", data["text/html"]).replace(' border="1"', "")
        return f"{table}\n"
    text = _CONTROL.sub("", output.get("text") or data.get("text/plain", "")).strip("\n")
    return _fenced('{.text .output title="Output"}', text) if text.strip() else ""


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


def main(arguments: list[str]) -> int:
    """Execute the named tutorials, or all; exit status 1 if one took too long."""
    # Commands of this environment are found, and look the same for everyone.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # bars of tqdm that a page cannot show
    slow = False
    for path in [SOURCE / f"{name}.py" for name in arguments] or sorted(SOURCE.glob("*.py")):
        seconds = run(path)
        slow |= seconds > MOST_SECONDS
        print(f"{path.stem}: {seconds:.0f} s", flush=True)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
