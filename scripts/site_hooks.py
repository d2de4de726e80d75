"""Hooks of MkDocs: what `make docs` adds to the pages of docs/.

Pages are kept as GitHub shows them. At build time `<!-- build: NAME -->` is replaced by a section
of `site_reference.SECTIONS`, executed tutorials come from build/tutorials, and files of the
repository's root become pages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import site_reference  # noqa: E402

TUTORIALS = ROOT / "build" / "tutorials"
#: Files of the root that are pages of the site, and links to them.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
}
_SECTION = re.compile(r"<!-- build: ([\w-]+) -->")
_TUTORIAL = re.compile(r"\((tutorials/)?(\w+)\.py\)")


def on_config(config: Any) -> Any:
    """Add pages that `nav` does not name to the how-to guides."""
    docs = Path(config.docs_dir)
    named = set(_named(config.nav))
    rest = sorted(f.name for f in docs.glob("*.md") if f.name not in named)
    guides = next(section["How-to guides"] for section in config.nav if "How-to guides" in section)
    guides.extend(rest)
    return config


def _named(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else ():
        yield from _named(inner)
    for inner in entry if isinstance(entry, list) else ():
        yield from _named(inner)


def on_files(files: Any, config: Any) -> Any:
    """Add the executed tutorials with their pictures, and files of the root."""
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        for other, there in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({there}")
        files.append(File.generated(config, page, content=_outside(text, "](")))
    if not TUTORIALS.is_dir():
        raise PluginError(f"{TUTORIALS} is not there; run `make tutorials` first")
    for made in sorted(p for p in TUTORIALS.rglob("*") if p.suffix in (".md", ".png", ".svg")):
        path = f"tutorials/{made.relative_to(TUTORIALS).as_posix()}"
        files.append(File.generated(config, path, abs_src_path=str(made)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated sections, and lead links to what the site has."""
    markdown = _SECTION.sub(lambda match: site_reference.SECTIONS[match[1]](), markdown)
    if page.file.src_uri.startswith("tutorials/"):
        return markdown  # as nbconvert wrote it
    markdown = _TUTORIAL.sub(r"(\1\2.md)", markdown)
    return _outside(markdown, "](../")


def _outside(text: str, start: str) -> str:
    """Lead links to pages made of root files; show links to other files there as plain text."""

    def lead(match: re.Match[str]) -> str:
        label, path, anchor = match[1], match[2].removeprefix("../"), match[3] or ""
        if path in ROOT_PAGES:
            return f"[{label}]({ROOT_PAGES[path]}{anchor})"
        if (ROOT / path).exists() and not (ROOT / "docs" / path).exists():
            return label if label.strip("`") == path else f"{label} (`{path}`)"
        return match[0]

    link = rf"\[([^\]]+)\]\({re.escape(start[2:])}([\w./-]+)(#[\w-]+)?\)"
    return re.sub(link, lead, text)
