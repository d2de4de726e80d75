"""Layout of a preview: rows of panels with a key at the right. All lengths are in inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lundprobe_zarr.figures.paint import FAINT, INK, YELLOW, Window, add_panel
from lundprobe_zarr.figures.planes import View

#: Widths of the figure, its margin, the gap between panels, and the key column.
WIDTH, MARGIN, GAP, KEY_WIDTH = 12.0, 0.2, 0.08, 1.95
_KEY_LEFT = WIDTH - MARGIN - KEY_WIDTH
#: Width of a row's panels side by side, with gaps.
PANELS_WIDTH = _KEY_LEFT - MARGIN - 0.15
#: Heights of a row's heading and captions, and the space below it.
_HEADING, _CAPTION, _BELOW = 0.27, 0.2, 0.17


class Row:
    """A row of the figure: heading, captioned panels, and a key at the right; inches."""

    def __init__(self, figure: Figure, top: float, height: float) -> None:
        self.figure, self.top, self.height = figure, top, height
        self.bottom = top - _HEADING - _CAPTION - height

    @property
    def end(self) -> float:
        """The top of the next row."""
        return self.bottom - _BELOW

    def box(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Convert a box from inches to fractions of the figure."""
        w, h = self.figure.get_size_inches()
        return left / w, bottom / h, width / w, height / h

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write text at a position in inches."""
        w, h = self.figure.get_size_inches()
        self.figure.text(x / w, y / h, text, **({"color": INK, "va": "top"} | style))

    def heading(self, title: str, detail: str) -> None:
        """Write the row's title and, in a fainter colour, its details."""
        self.text(MARGIN, self.top, title, fontsize=12, fontweight="bold")
        self.text(_KEY_LEFT - 0.15, self.top - 0.02, detail, fontsize=9.5, color=FAINT, ha="right")

    def panel(self, left: float, width: float, view: View, window: Window, name: str) -> Axes:
        """Add an empty panel, `left` inches from the row's left edge."""
        box = self.box(MARGIN + left, self.bottom, width, self.height)
        return add_panel(self.figure, box, view, window, name)

    def caption(self, left: float, text: str) -> None:
        """Write a line above the panel that begins at `left` inches."""
        top = self.top - _HEADING + 0.02
        self.text(MARGIN + left, top, text, fontsize=9.5, color=FAINT)

    def key(self, name: str, left: float, bottom: float, width: float, height: float) -> Axes:
        """Add axes to the key column; positions are in inches from its lower left corner."""
        box = self.box(_KEY_LEFT + left, self.bottom + bottom, width, height)
        return self.figure.add_axes(box, label=name)


def add_legend(row: Row, handles: list[Line2D], missing: Sequence[str], height: float) -> None:
    """List lines and missing items in the lowest `height` inches of the row's key column."""
    axes = row.key("legend", 0.0, 0.0, KEY_WIDTH, height)
    axes.axis("off")
    absent = [Line2D([], [], linestyle="none", label=text) for text in missing]
    legend = axes.legend(
        handles=[*handles, *absent],
        loc="upper left",
        frameon=False,
        borderpad=0.0,
        borderaxespad=0.0,
        handlelength=2.1,
        handletextpad=0.6,
        labelspacing=0.42,
        fontsize=9.2,
        labelcolor=INK,
    )
    for text in legend.get_texts()[len(handles) :]:
        text.set(color=YELLOW)


def row_height(panels: float) -> float:
    """Return the height of a row whose panels are `panels` inches high."""
    return _HEADING + _CAPTION + panels + _BELOW
