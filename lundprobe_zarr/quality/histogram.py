"""Draw a histogram of what a rule compared, as inline SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from lundprobe_zarr.quality.outcome import Outcome

_WIDTH, _HEIGHT = 520, 170
#: Space for axes and their labels, at left, right, top and bottom.
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 42
_BINS = 30
#: Most limits that are drawn as lines: of rules whose limit is that of each patient, none are.
_MOST_LIMITS = 4
#: Least height of a bar that is not empty.
_SEEN = 2.0


def histogram(outcome: Outcome) -> str:
    """Return a figure of an outcome's values, or nothing without values or a name for them."""
    rule, values = outcome.rule, outcome.values
    if not rule.quantity or not values:
        return ""
    limits = outcome.limits if len(outcome.limits) <= _MOST_LIMITS else ()
    edges = _edges([v for v, _ in values], limits)
    counts = [_counts([v for v, f in values if f == flag], edges) for flag in (False, True)]
    scale = _Scale(edges[0], edges[-1], max(1, *map(sum, zip(*counts, strict=True))))
    unit = "" if rule.unit in ("", "1") else f" ({rule.unit})"
    label = f"{rule.quantity}{unit}"
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_axes(scale, label),
        *_bars(scale, edges, counts),
        *(_limit(scale, limit) for limit in limits),
        "</svg>",
    ]
    return f"<figure>{''.join(parts)}<figcaption>{_caption(outcome, limits)}</figcaption></figure>"


class _Scale:
    """Places in the drawing of values and counts."""

    def __init__(self, low: float, high: float, most: int) -> None:
        self.low, self.high, self.most = low, high, most

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def height(self, count: int) -> float:
        """Return the height of a bar; one of few patients stays visible."""
        return 0.0 if not count else max(_SEEN, count / self.most * (_HEIGHT - _TOP - _BOTTOM))


def _edges(values: Sequence[float], limits: Sequence[float]) -> list[float]:
    """Return the edges of bins over all values and limits; of some width if all are equal."""
    low, high = min([*values, *limits]), max([*values, *limits])
    space = (high - low) * 0.03 or max(abs(low), 1.0) * 0.05
    return [float(e) for e in np.linspace(low - space, high + space, _BINS + 1)]


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough)
    first = math.ceil(low / step)
    return [step * i for i in range(first, math.floor(high / step) + 1)]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts: list[int] = np.histogram(values, edges)[0].tolist()
    return counts


def _text(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _axes(scale: _Scale, label: str) -> list[str]:
    base = _HEIGHT - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>']
    for tick in _ticks(scale.low, scale.high):
        x = scale.x(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{_text(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts += [
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>',
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{scale.most}</text>',
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>',
        f'<text x="12" y="{(_TOP + base) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {(_TOP + base) / 2})">values</text>',
    ]
    return parts


def _bars(scale: _Scale, edges: Sequence[float], counts: Sequence[Sequence[int]]) -> list[str]:
    parts = []
    for i, (kept, flagged) in enumerate(zip(*counts, strict=True)):
        x, bottom = scale.x(edges[i]), float(_HEIGHT - _BOTTOM)
        width = scale.x(edges[i + 1]) - x - 1
        for count, name in ((kept, "kept"), (flagged, "flagged")):
            height = scale.height(count)
            bottom -= height
            if count:
                parts.append(
                    f'<rect class="{name}" x="{x:.1f}" y="{bottom:.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}"/>'
                )
    return parts


def _limit(scale: _Scale, limit: float) -> str:
    x = scale.x(limit)
    return (
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{_HEIGHT - _BOTTOM}"/>'
    )


def _caption(outcome: Outcome, limits: Sequence[float]) -> str:
    broken = sum(flag for _, flag in outcome.values)
    patients = f"{outcome.checked} patient{'' if outcome.checked == 1 else 's'}"
    caption = f"n = {len(outcome.values)} values of {patients}, {broken} flagged"
    caption += " (outlined)" if broken else ""
    dashed = ", ".join(_text(limit) for limit in limits)
    return escape(f"{caption}; dashed: {dashed}." if limits else f"{caption}.")
