"""HTML of an object in a notebook: a title, facts and a table. Everything given is text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

#: Left as tables are in most notebooks; colours are the notebook's own, light or dark.
_LEFT = ' style="text-align: left"'


def summary_html(
    title: str,
    facts: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
    more: str = "",
) -> str:
    """Return a title, facts in two columns, and a table, as one HTML element.

    Parameters
    ----------
    title : str
        What the object is.
    facts : mapping
        Name -> value.
    columns, rows
        Titles and cells of the table; without rows there is none.
    more : str
        A line below the table.
    """
    parts = [f"<p><strong>{escape(title)}</strong></p>"]
    if facts:
        lines = (
            f"<tr><th{_LEFT}>{escape(name)}</th><td{_LEFT}>{escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        parts.append(f"<table>{''.join(lines)}</table>")
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    if body:
        parts.append(
            f"<table><thead><tr>{_cells(columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"
        )
    if more:
        parts.append(f"<p>{escape(more)}</p>")
    return f"<div>{''.join(parts)}</div>"


def _cells(row: Iterable[object], tag: str) -> str:
    return "".join(f"<{tag}{_LEFT}>{escape(str(cell))}</{tag}>" for cell in row)
