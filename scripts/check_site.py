"""Check the built site: nothing is fetched from another host, and pictures are described.

    python scripts/check_site.py [--links]

With `--links` links to other hosts are listed; whether these answer is not asked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "build" / "site"
#: Elements that make a browser fetch, and the attributes which say what.
_FETCHED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "object": ("data",), "embed": ("src",),
}  # fmt: skip
#: Relations of `<link>` that a browser does not follow by itself.
_NOT_FETCHED = {"canonical", "next", "prev", "alternate", "license", "edit"}
_IN_STYLES = re.compile(r"(?:url\(\s*|@import\s+)['\"]?((?:https?:)?//[^'\")\s]+)")


class Page(HTMLParser):
    """What a page fetches from elsewhere, its links there, and what it lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: set[str] = set()
        self.lacks: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at an element."""
        found = {name: value or "" for name, value in attrs}
        if tag == "img" and "alt" not in found:
            self.lacks.append(f"picture {found.get('src')} without a description")
        if tag == "a" and _elsewhere(found.get("href", "")):
            self.links.add(found["href"])
        wanted = _FETCHED.get(tag, ())
        if tag == "link" and not set(found.get("rel", "").split()) & _NOT_FETCHED:
            wanted = ("href",)
        self.fetched += [found[a] for a in wanted if _elsewhere(found.get(a, ""))]
        self.fetched += _IN_STYLES.findall(found.get("style", ""))


def _elsewhere(url: str) -> bool:
    return url.startswith(("http:", "https:", "//"))


def problems(site: Path) -> Iterator[str]:
    """Yield what is wrong with each page and style sheet."""
    for path in sorted(site.rglob("*")):
        where = path.relative_to(site)
        if path.suffix == ".html":
            page = read(path)
            yield from (f"{where}: fetches {url}" for url in page.fetched)
            yield from (f"{where}: {lack}" for lack in page.lacks)
        elif path.suffix in (".css", ".svg"):
            text = path.read_text(encoding="utf-8")
            yield from (f"{where}: fetches {url}" for url in _IN_STYLES.findall(text))


def read(path: Path) -> Page:
    """Parse a page."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def main(arguments: Sequence[str]) -> int:
    """Check all; exit status 1 if something is wrong."""
    pages = sorted(SITE.rglob("*.html"))
    found = list(problems(SITE))
    if "--links" in arguments:
        print("\n".join(sorted({link for path in pages for link in read(path).links})))
    print("\n".join([*found, f"{len(pages)} pages, {len(found)} problems"]))
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
