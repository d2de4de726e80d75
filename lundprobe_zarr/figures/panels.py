"""The rows of a preview: anatomy, dose, and the consensus of networks and observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from lundprobe_zarr.figures.layout import GAP, KEY_WIDTH, PANELS_WIDTH, Row, add_legend
from lundprobe_zarr.figures.paint import (
    ENSEMBLE_LINE,
    INK,
    ISODOSE_LINES,
    OBSERVER_LINES,
    STRUCTURE_LINES,
    Window,
    add_scale_bar,
    grey_limits,
    letter_sides,
    outline,
    paint,
    scale_bar_mm,
    window_around,
)
from lundprobe_zarr.figures.planes import (
    AXIAL,
    TARGET,
    VIEWS,
    Consensus,
    Pixels,
    Preview,
    View,
)
from lundprobe_zarr.vocabulary.names import OBSERVERS, PRESCRIPTION_GY, STEPS, TARGETS

#: A row to draw: the height of its panels, inches, and the function that fills it.
Plan = tuple[float, Callable[[Row], None]]
_CONSENSUS_HEIGHT = 2.9
#: Brightness of the bottom row's image, below its many lines.
_DIMMED = 0.65

#: Margins around the body, and around the segmentations of the bottom row, mm.
_BODY_MARGIN_MM, _CONSENSUS_MARGIN_MM = 8.0, 10.0
#: Soft-tissue window of the synthetic CT, HU.
_SCT_WINDOW = (-160.0, 240.0)
#: Fractions of the prescription at which the dose wash begins and reaches its full opacity.
_WASH_SHARES = (0.03, 0.10)
_WASH_MAP, _WASH_OPACITY, _UNCERTAINTY_MAP = "inferno", 0.6, "plasma"
_STEP_TITLES = {1: "step 1: without the map", 2: "step 2: with the map"}


def plan_rows(preview: Preview) -> list[Plan]:
    """Return the rows for which this patient has data, from the top."""
    windows = _body_windows(preview)
    height = _common_height(windows)
    rows: list[Plan] = [(height, partial(_draw_anatomy, preview, windows))]
    if preview.dose:
        rows.append((height, partial(_draw_dose, preview, windows)))
    if preview.consensus:
        rows.append((_CONSENSUS_HEIGHT, partial(_draw_consensus, preview, preview.consensus)))
    return rows


def _body_windows(preview: Preview) -> dict[str, Window]:
    """Return each view's window around the body; views share their ranges and panel height."""
    frame, body = preview.frame, preview.masks.get("BODY", {})
    ranges: dict[str, list[float]] = {}
    for view in VIEWS:
        masks = [body[view.name]] if body else []
        window = window_around(frame, view, masks, _BODY_MARGIN_MM)
        for axis in (view.rows, view.columns):
            ranges.setdefault(axis, []).extend((window.low[axis], window.high[axis]))
    shared = Window({a: min(v) for a, v in ranges.items()}, {a: max(v) for a, v in ranges.items()})
    # Panels of one height have one scale and need no alignment.
    height = max(shared.length(view.rows) for view in VIEWS)
    return {view.name: shared.stretched(view.rows, height) for view in VIEWS}


def _inches_per_mm(windows: dict[str, Window]) -> float:
    widths = sum(windows[v.name].length(v.columns) for v in VIEWS)
    return (PANELS_WIDTH - 2 * GAP) / widths


def _common_height(windows: dict[str, Window]) -> float:
    return windows[AXIAL.name].length(AXIAL.rows) * _inches_per_mm(windows)


def _where(preview: Preview, view: View) -> str:
    axis, index = view.normal, preview.index[view.normal]
    positions = preview.frame.positions[axis]
    if preview.frame.oblique:
        return f"{view.name}  ·  slice {index + 1} of {len(positions)}"
    return f"{view.name}  ·  {axis} = {positions[index]:.1f} mm".replace("-", "−")


def _draw_views(
    row: Row,
    name: str,
    preview: Preview,
    windows: dict[str, Window],
    fill: Callable[[Axes, View], None],
) -> None:
    """Draw the row's three panels side by side; `fill(axes, view)` paints each."""
    left, scale = 0.0, _inches_per_mm(windows)
    bar = scale_bar_mm(min(windows[v.name].length(v.columns) for v in VIEWS))
    for view in VIEWS:
        width = windows[view.name].length(view.columns) * scale
        axes = row.panel(left, width, view, windows[view.name], f"{name} {view.name}")
        row.caption(left, _where(preview, view))
        fill(axes, view)
        letter_sides(axes, view)
        add_scale_bar(axes, bar)
        left += width + GAP


def _draw_anatomy(preview: Preview, windows: dict[str, Window], row: Row) -> None:
    where = f"centroid of {TARGET}" if preview.on_target else "centre of the volume"
    row.heading("T2w and clinical structures", f"slices through the {where}")
    seen: set[str] = set()

    def fill(axes: Axes, view: View) -> None:
        _paint_t2w(axes, preview, view)
        for structure, planes in preview.masks.items():
            line = STRUCTURE_LINES[structure]
            if outline(axes, preview.frame, view, planes[view.name], line, structure):
                seen.add(structure)

    _draw_views(row, "anatomy", preview, windows, fill)
    handles = [
        STRUCTURE_LINES[s].handle(s if s in seen else f"{s} (not cut)") for s in preview.masks
    ]
    add_legend(row, handles, [f"missing: {s}" for s in preview.missing], row.height)


def _paint_t2w(axes: Axes, preview: Preview, view: View, brightness: float = 1.0) -> None:
    low, high = grey_limits(preview.t2w.values())
    high = low + (high - low) / brightness
    paint(axes, preview.frame, view, preview.t2w[view.name], cmap="gray", vmin=low, vmax=high)


def _draw_dose(preview: Preview, windows: dict[str, Window], row: Row) -> None:
    peak = _largest(preview.dose.values())
    norm = Normalize(0.0, max(peak, PRESCRIPTION_GY))
    background = "sCT" if preview.sct else "T2w"
    plan = "" if preview.dose_max_gy is None else f"plan maximum {preview.dose_max_gy:.1f} Gy"
    row.heading(
        f"Planned dose on {background}, with CTV and PTV",
        "  ·  ".join(filter(None, (f"isodoses in % of {PRESCRIPTION_GY} Gy", plan))),
    )

    def fill(axes: Axes, view: View) -> None:
        _paint_background(axes, preview, view)
        _paint_dose(axes, preview, view, norm)

    _draw_views(row, "dose", preview, windows, fill)
    _add_dose_bar(row, norm)


def _paint_background(axes: Axes, preview: Preview, view: View) -> None:
    if not preview.sct:
        _paint_t2w(axes, preview, view)
        return
    low, high = _SCT_WINDOW
    paint(axes, preview.frame, view, preview.sct[view.name], cmap="gray", vmin=low, vmax=high)


def _paint_dose(axes: Axes, preview: Preview, view: View, norm: Normalize) -> None:
    frame, values = preview.frame, preview.dose[view.name]
    low, high = (share * PRESCRIPTION_GY for share in _WASH_SHARES)
    opacity = _WASH_OPACITY * np.clip((np.nan_to_num(values) - low) / (high - low), 0.0, 1.0)
    paint(axes, frame, view, values, norm=norm, cmap=_WASH_MAP, alpha=opacity)
    for percent, line in ISODOSE_LINES.items():
        level = percent / 100 * PRESCRIPTION_GY
        outline(axes, frame, view, values, line, f"{percent} %", level)
    for structure in preview.masks.keys() & {TARGET, "PTVT_427"}:
        # Thinner than in the anatomy row: the isodoses are close.
        line = replace(STRUCTURE_LINES[structure], width=1.2)
        outline(axes, frame, view, preview.masks[structure][view.name], line, structure)


def _add_dose_bar(row: Row, norm: Normalize) -> None:
    axes = row.key("dose bar", 0.52, 0.05, 0.17, row.height - 0.1)
    bar = row.figure.colorbar(ScalarMappable(norm, _WASH_MAP), cax=axes, alpha=_WASH_OPACITY)
    axes.set_facecolor("#808080")  # grey below the wash, as in the panels
    bar.set_label("dose (Gy)", color=INK, fontsize=9.5)
    bar.outline.set_visible(False)
    axes.yaxis.set_ticks_position("left")
    axes.yaxis.set_label_position("left")
    axes.tick_params(colors=INK, labelsize=9)
    for percent, line in ISODOSE_LINES.items():
        y = norm(percent / 100 * PRESCRIPTION_GY)
        style = line.handle(f"{percent} %")
        style.set(data=([0.0, 3.4], [y, y]), transform=axes.transAxes, clip_on=False)
        axes.add_line(style)
        axes.text(
            3.8, y, f"{percent} %", transform=axes.transAxes, color=INK, fontsize=9.5, va="center"
        )


def _draw_consensus(preview: Preview, consensus: Consensus, row: Row) -> None:
    row.heading("Prostate and rectum: networks and observers", _where(preview, AXIAL))
    width = (PANELS_WIDTH - 2 * GAP) / 3
    masks = [*consensus.ensemble.values(), *consensus.observers.values()]
    window = window_around(preview.frame, AXIAL, masks, _CONSENSUS_MARGIN_MM)
    window = _fitted(window, width / row.height)
    titles = ("uncertainty of the networks", *_STEP_TITLES.values())
    names = ("uncertainty", *(f"step {step}" for step in STEPS))
    panels = []
    for number, (title, name) in enumerate(zip(titles, names, strict=True)):
        left = number * (width + GAP)
        panels.append(row.panel(left, width, AXIAL, window, f"{name} axial"))
        row.caption(left, title)
        _paint_t2w(panels[-1], preview, AXIAL, _DIMMED)
    uncertain, *edited = panels
    norm = _paint_uncertainty(uncertain, preview, consensus)
    for axes in panels:  # first, because the observers' lines are thinner
        _paint_ensemble(axes, preview, consensus)
    for axes, step in zip(edited, STEPS, strict=True):
        _paint_observers(axes, preview, consensus, step)
    for axes in panels:
        letter_sides(axes, AXIAL)
        add_scale_bar(axes, scale_bar_mm(window.length("x")))
    _add_consensus_key(row, norm, consensus)


def _fitted(window: Window, aspect: float) -> Window:
    """Extend the axial window to `aspect` (width / height)."""
    width = max(window.length("x"), window.length("y") * aspect)
    return window.stretched("x", width).stretched("y", width / aspect)


def _paint_uncertainty(axes: Axes, preview: Preview, consensus: Consensus) -> Normalize:
    maps = list(consensus.uncertainty.values())
    values: Pixels = np.fmax.reduce(maps) if maps else np.zeros((1, 1))
    # Steps of 0.05 give the colour bar a round maximum.
    most = max(0.05, float(np.ceil(_largest([values]) * 20) / 20))
    norm = Normalize(0.0, most)
    if maps:
        # Voxels of low uncertainty are transparent and show the anatomy.
        opacity = 0.9 * np.clip(np.nan_to_num(values) / (0.2 * most), 0.0, 1.0)
        paint(axes, preview.frame, AXIAL, values, norm=norm, cmap=_UNCERTAINTY_MAP, alpha=opacity)
    return norm


def _paint_observers(axes: Axes, preview: Preview, consensus: Consensus, step: int) -> None:
    for (structure, when, observer), mask in consensus.observers.items():
        if when == step:
            name = f"{structure} {observer}"
            outline(axes, preview.frame, AXIAL, mask, OBSERVER_LINES[observer], name)


def _paint_ensemble(axes: Axes, preview: Preview, consensus: Consensus) -> None:
    for structure, mask in consensus.ensemble.items():
        outline(axes, preview.frame, AXIAL, mask, ENSEMBLE_LINE, f"{structure} ensemble")


def _add_consensus_key(row: Row, norm: Normalize, consensus: Consensus) -> None:
    axes = row.key("uncertainty bar", 0.05, row.height - 0.4, KEY_WIDTH - 0.2, 0.15)
    bar = row.figure.colorbar(
        ScalarMappable(norm, _UNCERTAINTY_MAP),
        cax=axes,
        orientation="horizontal",
        ticks=[0, norm.vmax],
    )
    bar.outline.set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_title("SD of 10 folds’ SoftMax", color=INK, fontsize=9.5, loc="left", pad=4)
    handles = [ENSEMBLE_LINE.handle("nnU-Net ensemble")] if consensus.ensemble else []
    present = {observer for _, _, observer in consensus.observers}
    handles += [line.handle(name) for name, line in OBSERVER_LINES.items() if name in present]
    add_legend(row, handles, _missing_of(consensus), row.height - 0.8)


def _missing_of(consensus: Consensus) -> list[str]:
    """Return the items that this extended patient lacks, as texts of legend entries."""
    lacking = {
        f"step {step} {target}": [
            o for o in OBSERVERS if (target, step, o) not in consensus.observers
        ]
        for target, step in product(TARGETS, STEPS)
    }
    lacking["nnU-Net mask"] = [t for t in TARGETS if t not in consensus.ensemble]
    lacking["uncertainty"] = [t for t in TARGETS if t not in consensus.uncertainty]
    return [f"missing, {what}:\n{' '.join(names)}" for what, names in lacking.items() if names]


def _largest(slices: Iterable[Pixels]) -> float:
    """Return the largest finite value of some slices; 0 if there is none."""
    return max(float(s[np.isfinite(s)].max(initial=0.0)) for s in slices)
