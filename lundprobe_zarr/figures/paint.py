"""Paint one panel: grey values, colour washes, contours, orientation letters and a scale bar.

A panel's axes are in mm along the patient's axes (LPS), so that proportions are correct for
anisotropic voxels too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from lundprobe_zarr.figures.planes import Frame, Pixels, View

#: Okabe & Ito's palette (https://jfly.uni-koeln.de/color/), safe for colour-blind readers.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
PURPLE = "#CC79A7"

PAPER, INK, FAINT = "#14171c", "#eceff4", "#9aa3b2"

#: Lengths a scale bar may have, mm.
_BARS_MM = (5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Line:
    """The style of a contour: colour, dashes, width in points, with or without a dark rim."""

    color: str
    style: Literal["solid"] | tuple[float, tuple[float, ...]] = "solid"
    width: float = 1.5
    rim: bool = True

    def handle(self, label: str) -> Line2D:
        """Return the line's entry in a legend."""
        return Line2D(
            [], [], color=self.color, linestyle=self.style, linewidth=self.width, label=label
        )


_DASHED = (0, (3.5, 1.6))
_DOTTED = (0, (1.2, 1.4))

#: Related structures share a colour and have different dashes.
STRUCTURE_LINES: dict[str, Line] = {
    "CTVT_427": Line(SKY, width=1.9),
    "PTVT_427": Line(SKY, _DASHED),
    "Rectum": Line(GREEN, width=1.8),
    "Bladder": Line(YELLOW),
    "PenileBulb": Line(PURPLE, width=1.8),
    "Genitalia": Line(PURPLE, _DASHED),
    "FemoralHead_L": Line(ORANGE),
    "FemoralHead_R": Line(ORANGE, _DASHED),
    "BODY": Line("#d8dee9", _DOTTED, 1.0),
}
#: Without rims: the lines nearly coincide, and the gaps of dashes must show the lines below.
OBSERVER_LINES: dict[str, Line] = {
    "obsB": Line(ORANGE, width=1.3, rim=False),
    "obsC": Line(SKY, (0, (6, 2)), 1.3, rim=False),
    "obsD": Line(YELLOW, (0, (3, 1.5)), 1.3, rim=False),
    "obsE": Line(PURPLE, (0, (1.4, 1.4)), 1.3, rim=False),
}
ENSEMBLE_LINE = Line("#ffffff", width=2.2)
#: Isodose, percent of the prescribed dose -> line.
ISODOSE_LINES: dict[int, Line] = {
    95: Line("#ffffff", width=1.1),
    80: Line("#ffffff", _DASHED, 1.0),
    50: Line("#ffffff", (0, (5, 1.4, 1.2, 1.4)), 1.0),
    20: Line("#ffffff", _DOTTED, 1.0),
}


@dataclass(frozen=True)
class Window:
    """The range of a view that a panel shows: from `low` to `high`, mm, by patient axis."""

    low: dict[str, float]
    high: dict[str, float]

    def length(self, axis: str) -> float:
        """Return the length shown along an axis, mm."""
        return self.high[axis] - self.low[axis]

    def stretched(self, axis: str, length: float) -> Window:
        """Return the window with `length` mm along an axis and the same centre."""
        middle = (self.low[axis] + self.high[axis]) / 2
        return Window(
            self.low | {axis: middle - length / 2}, self.high | {axis: middle + length / 2}
        )


def window_around(frame: Frame, view: View, masks: Iterable[Pixels], margin: float) -> Window:
    """Return the smallest window around every mask (rows, columns) with `margin` mm on each side.

    It is the whole slice if all masks are empty.
    """
    anywhere = np.logical_or.reduce([np.zeros(frame.shape(view), bool), *masks])
    low, high = {}, {}
    for axis, other in ((view.rows, 1), (view.columns, 0)):
        seen = frame.positions[axis][anywhere.any(axis=other)] if anywhere.any() else None
        ends = frame.extent(axis) if seen is None else (seen.min() - margin, seen.max() + margin)
        low[axis], high[axis] = float(min(ends)), float(max(ends))
    return Window(low, high)


def add_panel(
    figure: Figure, box: tuple[float, float, float, float], view: View, window: Window, name: str
) -> Axes:
    """Add an empty panel that shows `window`.

    `box` is (left, bottom, width, height) in fractions of the figure. Axes are in mm: the patient's
    right is at the left, anterior or superior at the top.
    """
    axes = figure.add_axes(box, label=name, facecolor="black")
    columns, rows = view.columns, view.rows
    axes.set_xlim(window.low[columns], window.high[columns])
    ends = window.low[rows], window.high[rows]
    axes.set_ylim(*(ends[::-1] if view.rows_ascend_downwards else ends))
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def paint(axes: Axes, frame: Frame, view: View, pixels: Pixels, **style: Any) -> None:
    """Show a slice (rows, columns) at its position in mm; `style` is passed to `Axes.imshow`."""
    left, right = frame.extent(view.columns)
    first, last = frame.extent(view.rows)
    axes.imshow(
        np.ma.masked_invalid(pixels),
        extent=(left, right, last, first),
        origin="upper",
        interpolation="bilinear",
        **style,
    )


def outline(
    axes: Axes, frame: Frame, view: View, values: Pixels, line: Line, name: str, level: float = 0.5
) -> bool:
    """Draw the contour of a slice (rows, columns) at `level`; return whether there is any.

    `values` is a mask or a slice of numbers. The drawn collection is labelled `name`.
    """
    numbers = np.ma.masked_invalid(values.astype(np.float32))
    # matplotlib warns about or refuses slices without a contour
    if min(numbers.shape) < 2 or not numbers.min() < level <= numbers.max():
        return False
    contour = axes.contour(
        frame.positions[view.columns],
        frame.positions[view.rows],
        numbers,
        levels=[level],
        colors=[line.color],
        linestyles=[line.style],
        linewidths=[line.width],
    )
    contour.set(label=name)
    if line.rim:
        contour.set(path_effects=[_halo(line.width + 1.3, 0.55)])
    return True


def _halo(width: float, alpha: float = 0.85) -> withStroke:
    return withStroke(linewidth=width, foreground="black", alpha=alpha)


def letter_sides(axes: Axes, view: View) -> None:
    """Write the patient's sides (R, L, A, P, S, I) at the panel's four edges."""
    places = ((0.012, 0.5), (0.988, 0.5), (0.5, 0.985), (0.5, 0.015))
    alignments = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (ha, va) in zip(view.letters, places, alignments, strict=True):
        _text(axes, *place, letter, ha=ha, va=va, fontsize=11, fontweight="bold")


def scale_bar_mm(width: float) -> int:
    """Return the length of a scale bar for a panel of `width` mm: round, at most 30 % of it."""
    return max((b for b in _BARS_MM if b <= 0.3 * width), default=_BARS_MM[0])


def add_scale_bar(axes: Axes, length: int) -> None:
    """Draw a bar of `length` mm in the panel's lower left corner."""
    share, start = length / abs(np.subtract(*axes.get_xlim())), 0.03
    axes.plot(
        [start, start + share],
        [0.045, 0.045],
        transform=axes.transAxes,
        color=INK,
        linewidth=2.2,
        solid_capstyle="butt",
        label="scale bar",
        path_effects=[_halo(3.8)],
    )
    _text(axes, start + share / 2, 0.065, f"{length} mm", ha="center", va="bottom", fontsize=8.5)


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, transform=axes.transAxes, color=INK, path_effects=[_halo(2.2)], **style)


def grey_limits(planes: Iterable[Pixels]) -> tuple[float, float]:
    """Return the values shown as black and white: 1st and 99.7th percentile of finite values."""
    values = np.concatenate([p[np.isfinite(p)].ravel() for p in planes])
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (1.0, 99.7))
    return float(low), float(max(high, low + 1e-6))
