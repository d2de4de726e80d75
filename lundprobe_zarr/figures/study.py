"""Figures of the observer study, from its tables: agreement, edits, calibration, estimates.

Steps differ in colour and in marker or hatching, so that print in grey and colour-blind readers
tell them apart. Every title says how many patients there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from lundprobe_zarr.measures.uncertainty import MAP_ENDS, decision_sd, entropy_bits

if TYPE_CHECKING:
    import pandas as pd

#: Blue and vermilion of Okabe & Ito's palette (https://jfly.uni-koeln.de/color/).
_COLORS = {1: "#0072B2", 2: "#D55E00"}
_MARKERS = {1: "o", 2: "s"}
_HATCHES = {1: "", 2: "///"}
_STEPS = {1: "step 1: without the map", 2: "step 2: with the map"}
_GREY = "#666666"
#: Width of one panel and height of a figure, inches.
_PANEL, _HEIGHT = 5.2, 4.2
#: Largest area of a marker in the calibration plot, points squared.
_LARGEST = 160.0


def _panels(figure: Figure, structures: list[str], rows: int = 1) -> npt.NDArray[Any]:
    """Return axes (rows, structures) on a figure that needs no window system."""
    FigureCanvasAgg(figure)
    figure.set_size_inches(_PANEL * len(structures), _HEIGHT * (0.6 + 0.4 * rows))
    figure.set_layout_engine("constrained")
    axes: npt.NDArray[Any] = figure.subplots(rows, len(structures), squeeze=False)
    for panel in axes.ravel():
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        panel.set_axisbelow(True)
    return axes


def _title(figure: Figure, text: str, patients: int) -> None:
    noun = "patient" if patients == 1 else "patients"
    figure.suptitle(f"{text} (n = {patients} {noun})", fontsize=12)


def _of(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["structure"]))


def draw_agreement(figure: Figure, pairs: pd.DataFrame, patients: int) -> None:
    """Draw each observer's Dice with the network, patient by patient, step 1 beside step 2.

    `pairs` are rows of the table `agreement` of kind `nnunet_observer`.
    """
    structures = _of(pairs)
    for axes, structure in zip(_panels(figure, structures)[0], structures, strict=True):
        some = pairs[pairs["structure"] == structure]
        observers = sorted(some["b_observer"].unique())
        for place, observer in enumerate(observers):
            _draw_observer(axes, place, some[some["b_observer"] == observer])
        axes.set(title=structure, xticks=range(len(observers)), xticklabels=observers)
        axes.set(xlabel="observer", ylabel="Dice with the network's mask")
    marks = [
        Line2D([], [], marker=_MARKERS[s], color=_COLORS[s], lw=0, label=t)
        for s, t in _STEPS.items()
    ]
    _add_key(figure, marks)
    _title(figure, "How far observers moved from the network", patients)


def _draw_observer(axes: Axes, place: int, rows: pd.DataFrame) -> None:
    values = rows.pivot_table(index="patient_id", columns="b_step", values="dice")
    left = {1: place - 0.17, 2: place + 0.17}
    both = [step for step in (1, 2) if step in values]
    if len(both) == 2:
        axes.plot(
            [left[1], left[2]], values[[1, 2]].to_numpy(np.float64).T, color="#bbbbbb", lw=0.7
        )
    for step in both:
        known = values[step].dropna().to_numpy(np.float64)
        box = axes.boxplot(
            known, positions=[left[step]], widths=0.22, showfliers=False, manage_ticks=False
        )
        for part in (line for lines in box.values() for line in lines):
            part.set(color=_COLORS[step], linewidth=1.4)
        where = np.full(len(known), left[step])
        axes.plot(where, known, _MARKERS[step], ms=3.5, color=_COLORS[step], alpha=0.7)


def _add_key(figure: Figure, handles: Sequence[Artist]) -> None:
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=10,
    )


def draw_edits(figure: Figure, edits: pd.DataFrame, patients: int) -> None:
    """Draw how many voxels were edited in each bin of the map, and their share, by step.

    `edits` is that table of the study.
    """
    structures = _of(edits)
    panels = _panels(figure, structures, rows=2)
    for column, structure in enumerate(structures):
        some = edits[edits["structure"] == structure]
        for row, (name, label) in enumerate(
            (
                ("edited_voxels", "edited voxels, all observers"),
                ("edit_rate", "share of the bin's voxels"),
            )
        ):
            axes = panels[row, column]
            _draw_bars(axes, some, name)
            axes.set(ylabel=label, title=structure if row == 0 else "")
            if name == "edit_rate":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                axes.set_xlabel("uncertainty: standard deviation of the folds' SoftMax")
    bars = [
        Patch(facecolor=_COLORS[s], hatch=_HATCHES[s], edgecolor="white", label=t)
        for s, t in _STEPS.items()
    ]
    _add_key(figure, [*bars, Line2D([], [], lw=0, label="–: no voxels in the bin")])
    _title(figure, "Edits of the network's mask by its uncertainty", patients)


def _draw_bars(axes: Axes, rows: pd.DataFrame, name: str) -> None:
    lows = sorted(rows["bin_low"].unique())
    for step in _STEPS:
        some = rows[rows["step"] == step].set_index("bin_low")[name].reindex(lows)
        heights = some.to_numpy(np.float64, na_value=np.nan)
        where = np.arange(len(lows)) + (-0.2 if step == 1 else 0.2)
        axes.bar(
            where,
            np.nan_to_num(heights),
            0.38,
            color=_COLORS[step],
            hatch=_HATCHES[step],
            edgecolor="white",
        )
        for x, height in zip(where, heights, strict=True):
            if np.isnan(height):
                axes.text(x, 0, "–", ha="center", va="bottom", color=_GREY, fontsize=9)
    ends = [f"{low:g}–{high:g}" for low, high in zip(lows, MAP_ENDS, strict=False)]
    axes.set_xticks(range(len(lows)), ends)


def draw_calibration(figure: Figure, calibration: pd.DataFrame, patients: int) -> None:
    """Draw which share of voxels observers drew, by the share of folds that did.

    On the diagonal the folds' share is the probability that an observer includes the voxel.
    """
    structures = _of(calibration)
    for axes, structure in zip(_panels(figure, structures)[0], structures, strict=True):
        some = calibration[calibration["structure"] == structure]
        axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls=(0, (4, 3)), label="calibrated")
        for step, text in _STEPS.items():
            rows = some[some["step"] == step].sort_values("fold_mean")
            weights = np.sqrt(rows["voxels"].to_numpy(np.float64))
            inner = weights[1:-1].max(initial=0.0) or 1.0
            sizes = np.clip(weights / inner, 0.15, 1.0) * _LARGEST
            style = {"color": _COLORS[step], "marker": _MARKERS[step], "alpha": 0.75, "zorder": 3}
            axes.plot(rows["fold_mean"], rows["inside_rate"], color=_COLORS[step], lw=1.3)
            axes.scatter(rows["fold_mean"], rows["inside_rate"], s=sizes, label=text, **style)
        axes.set(title=structure, xlabel="share of the folds' masks", xlim=(-0.03, 1.03))
        axes.set(ylabel="share of the observers' masks", ylim=(-0.03, 1.03), aspect="equal")
        key = axes.legend(frameon=False, fontsize=9, loc="upper left")
        for handle in key.legend_handles[1:]:
            handle.set_sizes([45])
    _title(figure, "Calibration of the folds' share; areas by √voxels", patients)


def draw_estimates(figure: Figure, calibration: pd.DataFrame, patients: int) -> None:
    """Draw the mean of the map by the share of folds, beside what the share itself says."""
    structures = _of(calibration)
    p = np.linspace(0, 1, 201)
    for axes, structure in zip(_panels(figure, structures)[0], structures, strict=True):
        some = calibration[calibration["structure"] == structure].drop_duplicates("fold_mean")
        some = some.sort_values("fold_mean")
        axes.plot(p, entropy_bits(p), color=_GREY, ls=":", lw=1.6, label="entropy (bits)")
        axes.plot(p, decision_sd(p), color="#009E73", ls="--", lw=1.6, label="√p(1−p)")
        axes.plot(
            some["fold_mean"], some["disagreement"], "^", color="#CC79A7", label="disagreement"
        )
        axes.plot(
            some["fold_mean"], some["map_mean"], "o-", color="#0072B2", label="mean of the map"
        )
        axes.set(
            title=structure, xlabel="share p of the folds' masks", ylabel="uncertainty (1; bits)"
        )
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
        axes.set_ylim(0, 1.25)
    _title(figure, "The uncertainty map beside estimates of the folds' masks", patients)
