"""Gather the fragments of changelog.d under a new version of CHANGELOG.md, and remove them.

python scripts/changelog.py VERSION
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Kinds of entries, in the order of their sections.
KINDS = ("changed", "added", "fixed", "removed")
_NAME = re.compile(rf"[\w-]+\.(?P<kind>{'|'.join(KINDS)})\.md")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_UNRELEASED = re.compile(
    r"^## \[Unreleased\]\n(?P<body>.*?)(?=^## \[|\Z)", re.DOTALL | re.MULTILINE
)


def fragments(folder: Path) -> dict[Path, tuple[str, str]]:
    """Return kind and text of each fragment; raise `ValueError` for a name that is none."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            continue
        named = _NAME.fullmatch(path.name)
        text = path.read_text(encoding="utf-8").strip()
        if named is None or not text:
            raise ValueError(f"{path}: expected text in a file WORDS.KIND.md, KIND one of {KINDS}")
        found[path] = named["kind"], text
    return found


def released(text: str, entries: Sequence[tuple[str, str]], version: str, day: date) -> str:
    """Return a changelog whose unreleased entries, and those given, are under a new version."""
    if not _VERSION.fullmatch(version) or f"## [{version}]" in text:
        raise ValueError(f"{version!r}: expected a new version such as 0.3.0")
    unreleased = _UNRELEASED.search(text)
    if unreleased is None:
        raise ValueError("CHANGELOG.md has no section `## [Unreleased]`")
    sections = _sections(unreleased["body"])
    for kind, entry in entries:
        item = "- " + entry.replace("\n", "\n  ")
        there = sections.setdefault(kind.capitalize(), "")
        sections[kind.capitalize()] = f"{there}\n{item}".strip("\n")
    body = "".join(f"\n### {title}\n\n{items}\n" for title, items in _ordered(sections).items())
    before, after = text[: unreleased.start()], text[unreleased.end() :]
    return (
        f"{before}## [Unreleased]\n\n## [{version}] - {day.isoformat()}\n{body}\n{after}".rstrip()
        + "\n"
    )


def _sections(body: str) -> dict[str, str]:
    """Split the entries of a version by their headings."""
    _, *parts = re.split(r"^### (.+)\n", body, flags=re.MULTILINE)
    return {title: items.strip("\n") for title, items in zip(parts[::2], parts[1::2], strict=True)}


def _ordered(sections: Mapping[str, str]) -> dict[str, str]:
    """Put the known kinds first; other headings stay behind them, in their order."""
    known = [k.capitalize() for k in KINDS if k.capitalize() in sections]
    return {k: sections[k] for k in (*known, *(s for s in sections if s not in known))}


def main(arguments: Sequence[str]) -> int:
    """Write CHANGELOG.md and remove the fragments."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    changelog, found = ROOT / "CHANGELOG.md", fragments(ROOT / "changelog.d")
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(
        released(text, list(found.values()), arguments[0], date.today()), encoding="utf-8"
    )
    for path in found:
        path.unlink()
    print(f"CHANGELOG.md: {len(found)} fragments under {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
