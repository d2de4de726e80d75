"""Look whether the relative links and anchors of all Markdown files lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def markdown_files(root: Path) -> list[Path]:
    """Markdown files that git tracks, or would: not those it ignores."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [root / line for line in listed.stdout.splitlines() if (root / line).is_file()]


def anchors(text: str) -> set[str]:
    """Anchors of a file's headings, as GitHub makes them; a repeated one gets a number."""
    found: dict[str, int] = {}
    names = set()
    for title in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = found.get(name, 0)
        found[name] = number + 1
        names.add(f"{name}-{number}" if number else name)
    return names


def dead_links(file: Path, root: Path) -> Iterator[str]:
    """What is wrong with the relative links of one file."""
    # Fragments of the changelog are put into a file of the root.
    home = root if file.parent.name == "changelog.d" and file.name != "README.md" else file.parent
    text = _read(file)
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", text))):
        if _ELSEWHERE.match(target):
            continue
        path, _, anchor = target.partition("#")
        there = (home / path).resolve() if path else file
        where = f"{file.relative_to(root)}: link to {target!r}"
        if not there.exists():
            yield f"{where}: no such file"
        elif anchor and there.suffix == ".md" and anchor not in anchors(_read(there)):
            yield f"{where}: no such heading"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def main() -> int:
    """Check every file; exit status 1 if a link is dead."""
    root = Path(__file__).resolve().parent.parent
    files = markdown_files(root)
    dead = [line for file in files for line in dead_links(file, root)]
    print("\n".join([*dead, f"{len(files)} Markdown files, {len(dead)} dead links"]))
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
