"""Draw cumulative dose-volume histograms: of a patient, of a cohort, or by a property of it.

Colours are Okabe & Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell
apart; structures or groups that share one differ in their dashes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.figures.notebook import NotebookFigure
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY, STRUCTURES
from lundprobe_zarr.vocabulary.suggest import suggestion

Numbers = npt.NDArray[np.float64]
Volume = Literal["%", "cc"]
#: Properties by which segmentations can be grouped.
GROUPS = ("protocol", "part", "source", "step", "observer", "fold")

_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
_BLUE, _VERMILLION, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
_STYLES: dict[str, tuple[str, Any]] = {
    "CTVT_427": (_BLUE, "solid"),
    "PTVT_427": (_SKY, "solid"),
    "Rectum": (_GREEN, "solid"),
    "Bladder": (_ORANGE, "solid"),
    "PenileBulb": (_PURPLE, "solid"),
    "Genitalia": (_PURPLE, _DASHES[1]),
    "FemoralHead_L": (_VERMILLION, "solid"),
    "FemoralHead_R": (_VERMILLION, _DASHES[1]),
    "BODY": (_BLACK, _DASHES[2]),
}
_GROUP_STYLES = tuple(
    zip((_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK), _DASHES * 2, strict=False)
)
#: Dashes of other sources than clinical masks, by source and step.
_SOURCE_DASHES: dict[tuple[str, float], Any] = {
    ("nnunet", 0): _DASHES[1],
    ("nnunet_fold", 0): _DASHES[2],
    ("observer", 1): (0, (10, 2.5)),
    ("observer", 2): _DASHES[3],
}
_SOURCE_WORDS = {"nnunet": "nnU-Net", "nnunet_fold": "nnU-Net fold", "observer": "observer"}
#: Inches of one panel, and of the smaller ones by group; characters of the caption an inch.
_SIZE, _SMALL, _CHARACTERS = (8.4, 5.0), (3.6, 2.9), 15


@dataclass(frozen=True)
class _Group:
    """Segmentations drawn alike: their rows, and how."""

    label: str
    rows: npt.NDArray[np.bool_]
    color: str
    dashes: Any


def draw_dvh(
    curves: xr.Dataset, by: str | None, volume: str, quantiles: tuple[float, float]
) -> NotebookFigure:
    """Draw the curves of `dvh`; see `lp.plot_dvh`."""
    _require(curves, by, volume, quantiles)
    values, dropped = _values(curves, volume)
    if by is None:
        figure = _one_panel(curves, values, volume, quantiles)
    else:
        figure = _panels(curves, values, by, volume, quantiles)
    width = int(_CHARACTERS * figure.get_figwidth())
    caption = textwrap.fill(_caption(curves, by, volume, quantiles, dropped), width)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#404040")
    return figure


def _require(
    curves: xr.Dataset, by: str | None, volume: str, quantiles: tuple[float, float]
) -> None:
    if not {"cumulative_cc", "structure"} <= {*curves.variables} or "dose" not in curves.dims:
        raise UsageError(
            f"plot_dvh of a Dataset with {', '.join(map(str, curves.data_vars)) or 'nothing'}",
            expected="the curves that lp.dvh(patient_or_cohort) returns",
        )
    if by is not None and by not in GROUPS:
        raise UsageError(
            f"by={by!r}",
            expected=f"one of {', '.join(GROUPS)}",
            remedy=suggestion(str(by), GROUPS),
        )
    if volume not in ("%", "cc"):
        raise UsageError(f"volume={volume!r}", expected="'%' or 'cc'")
    numbers = np.asarray(quantiles, float)
    if numbers.shape != (2,) or not 0 <= numbers[0] < numbers[1] <= 100:
        raise UsageError(f"quantiles={quantiles!r}", expected="two percents, e.g. (5, 95)")


def _column(curves: xr.Dataset, name: str) -> npt.NDArray[Any]:
    return np.atleast_1d(curves[name].values)


def _values(curves: xr.Dataset, volume: str) -> tuple[Numbers, int]:
    """Return the volumes (segmentation, dose), and how many segmentations have no dose."""
    cumulative = np.atleast_2d(curves["cumulative_cc"].transpose(..., "dose").values)
    if volume == "%":
        share = _column(curves, "covered_pct")
        if curves.attrs.get("outside") == "zero":
            share = np.full(share.shape, 100.0)
        counted = _column(curves, "volume_cc") * np.where(np.isnan(share), 100.0, share) / 100
        counted = np.where(counted > 0, counted, np.nan)
        cumulative = 100 * cumulative / counted[:, None]
    return cumulative, int(np.isnan(cumulative).all(axis=1).sum())


def _one_panel(
    curves: xr.Dataset, values: Numbers, volume: str, quantiles: tuple[float, float]
) -> NotebookFigure:
    figure, axes = _figure(1, 1, _SIZE)
    single = _patients(curves) == 1
    handles = []
    for group in _by_structure(curves):
        several = int(group.rows.sum()) > 1
        if single:
            width = 0.9 if several else 1.8
            _lines(axes[0], curves, values[group.rows], group, width)
            label = f"{group.label}{_size(curves, group.rows)}"
        else:
            _band(axes[0], curves, values[group.rows], group, quantiles)
            label = f"{group.label}, {_number(curves, values, group.rows)}"
        handles.append(_handle(group, label))
    _finish(axes[0], curves, values, volume)
    figure.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.4
    )
    return figure


def _panels(
    curves: xr.Dataset, values: Numbers, by: str, volume: str, quantiles: tuple[float, float]
) -> NotebookFigure:
    """Draw a panel a structure, with a median and band for each value of `by`."""
    there = _column(curves, "structure")
    names = [s for s in STRUCTURES if (there == s).any()]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    width, height = _SMALL
    size = (width * columns + 0.4, height * lines + 0.7) if len(names) > 1 else _SIZE
    figure, axes = _figure(lines, columns, size)
    for name, panel in zip(names, axes, strict=False):
        handles = []
        for group in _by_value(curves, by, there == name):
            _band(panel, curves, values[group.rows], group, quantiles)
            label = f"{group.label}, {_number(curves, values, group.rows)}"
            handles.append(_handle(group, label))
        _finish(panel, curves, values, volume, alone=False)
        panel.set_title(name, fontsize=10, loc="left")
        panel.legend(handles=handles, fontsize=8, loc="best", framealpha=0.85, edgecolor="none")
    for panel in axes[len(names) :]:
        panel.axis("off")
    return figure


def _figure(
    rows: int, columns: int, size: tuple[float, float]
) -> tuple[NotebookFigure, Sequence[Axes]]:
    figure = NotebookFigure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # without pyplot: no open figures, no window system
    return figure, list(np.ravel(figure.subplots(rows, columns, sharex=True, sharey=True)))


def _by_structure(curves: xr.Dataset) -> list[_Group]:
    """Group segmentations by structure, source and step, in the canonical order."""
    columns = [_column(curves, name) for name in ("structure", "source", "step")]
    keys = list(
        zip(columns[0].tolist(), columns[1].tolist(), np.nan_to_num(columns[2]), strict=True)
    )
    groups = []
    for key in sorted(set(keys), key=lambda k: (STRUCTURES.index(k[0]), k[1], k[2])):
        structure, source, step = key
        color, dashes = _STYLES[structure]
        words = _SOURCE_WORDS.get(source)
        label = structure if words is None else f"{structure}, {words}"
        label += f" step {step:.0f}" if step else ""
        groups.append(
            _Group(
                label,
                np.array([k == key for k in keys]),
                color,
                _SOURCE_DASHES.get((source, float(step)), dashes),
            )
        )
    return groups


def _by_value(curves: xr.Dataset, by: str, of: npt.NDArray[np.bool_]) -> list[_Group]:
    column = _column(curves, by)
    known = sorted({v for v in column.tolist() if v not in ("", None) and v == v})
    if not known:
        raise UsageError(
            f"by={by!r}, which no segmentation here has",
            expected="a property of the segmentations",
            remedy="choose other sources=, or another property",
        )
    styles = [_GROUP_STYLES[n % len(_GROUP_STYLES)] for n in range(len(known))]
    return [
        _Group(_word(by, value), of & (column == value), *style)
        for value, style in zip(known, styles, strict=True)
        if (of & (column == value)).any()
    ]


def _word(by: str, value: Any) -> str:
    return f"{by} {value:.0f}" if isinstance(value, float) else str(value)


def _lines(axes: Axes, curves: xr.Dataset, values: Numbers, group: _Group, width: float) -> None:
    for line in values:
        axes.plot(
            curves["dose"].values,
            line,
            color=group.color,
            linestyle=group.dashes,
            linewidth=width,
            label=group.label,
        )


def _band(
    axes: Axes,
    curves: xr.Dataset,
    values: Numbers,
    group: _Group,
    quantiles: tuple[float, float],
) -> None:
    """Draw the median at each dose, and the band between two quantiles of the patients there."""
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        return
    doses = curves["dose"].values
    low, median, high = np.percentile(values, (quantiles[0], 50, quantiles[1]), axis=0)
    axes.fill_between(doses, low, high, color=group.color, alpha=0.18, linewidth=0)
    axes.plot(
        doses, median, color=group.color, linestyle=group.dashes, linewidth=1.8, label=group.label
    )


def _handle(group: _Group, label: str) -> Line2D:
    return Line2D([], [], color=group.color, linestyle=group.dashes, linewidth=1.8, label=label)


def _finish(
    axes: Axes, curves: xr.Dataset, values: Numbers, volume: str, alone: bool = True
) -> None:
    axes.axvline(PRESCRIPTION_GY, color=_GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    finite = np.nan_to_num(values).max(axis=0)
    reached = curves["dose"].values[np.flatnonzero(finite > 0)]
    axes.set_xlim(0, max(1.04 * float(reached[-1]), 1.0) if len(reached) else 1.0)
    axes.set_ylim(0, 103 if volume == "%" else None)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8.5)
    place = axes.get_subplotspec()
    if place is None or place.is_last_row():
        axes.set_xlabel("Dose (Gy)", fontsize=9.5)
    if place is None or place.is_first_col():
        unit = "%" if volume == "%" else "cm³"
        what = "Volume that receives at least the dose" if alone else "Volume"
        axes.set_ylabel(f"{what} ({unit})", fontsize=9.5)


def _patients(curves: xr.Dataset) -> int:
    return len(set(_column(curves, "patient_id").tolist()))


def _number(curves: xr.Dataset, values: Numbers, rows: npt.NDArray[np.bool_]) -> str:
    """Return `n = 432`, the patients with a curve; with more segmentations, their number too."""
    drawn = rows & ~np.isnan(values).all(axis=1)
    patients = len(set(_column(curves, "patient_id")[drawn].tolist()))
    masks = int(drawn.sum())
    return f"n = {patients}" + (f" ({masks} masks)" if masks != patients else "")


def _size(curves: xr.Dataset, rows: npt.NDArray[np.bool_]) -> str:
    """Return the volume of a segmentation, or the number of several, and what is covered."""
    covered = np.nanmin(np.append(_column(curves, "covered_pct")[rows], 100.0))
    inside = "" if covered == 100 else f", {_rounded_down(covered):.3g} % inside"
    if int(rows.sum()) > 1:
        return f" ({rows.sum()} masks{inside})"
    cc = float(_column(curves, "volume_cc")[rows][0])
    return f" ({f'{cc:,.0f}' if cc >= 100 else f'{cc:.3g}'} cm³{inside})"


def _caption(
    curves: xr.Dataset,
    by: str | None,
    volume: str,
    quantiles: tuple[float, float],
    dropped: int,
) -> str:
    """Say what is drawn, of how many, on which grid, and what percentages are of."""
    patients, about = _patients(curves), curves.attrs
    grid = {"sct": "sCT", "mri": "MRI"}.get(str(about.get("grid")), "unknown")
    if patients == 1 and by is None:
        sentences = [f"Patient {_column(curves, 'patient_id')[0]}, n = 1."]
    else:
        low, high = (f"{q:g}" for q in quantiles)
        sentences = [
            f"Line: median of the volume at each dose; band: percentiles {low} to {high}; "
            f"n = {patients} {'patient' if patients == 1 else 'patients'}."
        ]
    sentences.append(f"Cumulative, {_sources(curves)}, {grid} grid, from {_origin(about)}.")
    sentences.append(_inside(curves, volume))
    if dropped:
        are = "segmentation without dose is" if dropped == 1 else "segmentations without dose are"
        sentences.append(f"{dropped} {are} not drawn.")
    sentences.append(f"Dotted: the prescription, {PRESCRIPTION_GY} Gy.")
    return " ".join(sentences)


def _sources(curves: xr.Dataset) -> str:
    found = [_SOURCE_WORDS.get(s, s) for s in dict.fromkeys(_column(curves, "source").tolist())]
    listed = " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))
    return f"{listed} masks"


def _origin(about: Mapping[Any, Any]) -> str:
    return "the table of 0.1 Gy bins" if about.get("method") == "table" else "voxels"


def _inside(curves: xr.Dataset, volume: str) -> str:
    share = _column(curves, "covered_pct")
    if curves.attrs.get("outside") == "zero":
        return "Tissue outside the planning dose grid counts as 0 Gy."
    if not (share < 100).any():
        return "All structures lie inside the planning dose grid."
    of = "Percent of the part" if volume == "%" else "Volume of the part"
    least = int(np.nanargmin(share))
    name = _column(curves, "structure")[least]
    part = f"{_rounded_down(share[least]):.1f} % ({name})"
    return f"{of} inside the planning dose grid, at least {part}."


def _rounded_down(share: float) -> float:
    """A covered part to a tenth of a percent, so that what is cut never reads as 100 %."""
    return float(np.floor(10 * share) / 10)
