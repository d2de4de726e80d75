"""A figure of one slice of a labelled volume, with contours of structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.figures.notebook import NotebookFigure
from lundprobe_zarr.figures.paint import (
    INK,
    PAPER,
    STRUCTURE_LINES,
    Window,
    add_panel,
    add_scale_bar,
    grey_limits,
    letter_sides,
    outline,
    paint,
    scale_bar_mm,
)
from lundprobe_zarr.figures.planes import VIEWS, Frame, Pixels, View, frame_of
from lundprobe_zarr.geometry.affine import largest_shift
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.grid import grid_of, single_volume
from lundprobe_zarr.labelled.select import select_structure
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS

#: Lengths in inches: of the panel's longer side, of the caption above and the key beside it, and
#: the least height, which a key of nine structures needs.
_LONGER, _CAPTION, _KEY, _LEAST = 6.0, 0.35, 2.4, 2.4
#: Largest distance between voxels of masks and image, in voxels of the image.
_SAME_VOXEL = 0.01


def plot_slice(
    data: xr.DataArray,
    view: str,
    at: float | None,
    masks: xr.DataArray | xr.Dataset | None,
    structures: Sequence[str] | None,
    **style: Any,
) -> NotebookFigure:
    """Plot one slice; see `lp.plot`."""
    volume, chosen = single_volume(data), _view(view)
    grid = grid_of(volume)
    frame = frame_of(grid.affine, grid.shape)
    index = _index(frame, chosen, at)
    pixels = _plane(volume, frame, chosen, index)
    figure, axes = _panel(frame, chosen, _KEY if masks is not None else 0.0)
    low, high = grey_limits([pixels])
    paint(axes, frame, chosen, pixels, **({"cmap": "gray", "vmin": low, "vmax": high} | style))
    handles = []
    for name, mask in _masks(masks, structures, grid):
        plane = _plane(mask, frame, chosen, index)
        is_cut = outline(axes, frame, chosen, plane, STRUCTURE_LINES[name], name)
        handles.append(STRUCTURE_LINES[name].handle(name if is_cut else f"{name} (not cut)"))
    letter_sides(axes, chosen)
    add_scale_bar(axes, scale_bar_mm(abs(float(np.subtract(*axes.get_xlim())))))
    _describe(axes, data, frame, chosen, index)
    if handles:
        _add_key(axes, handles)
    return figure


def _view(name: str) -> View:
    for view in VIEWS:
        if view.name == name:
            return view
    raise UsageError(f"view {name!r}", expected=f"one of {', '.join(v.name for v in VIEWS)}")


def _index(frame: Frame, view: View, at: float | None) -> int:
    positions = frame.positions[view.normal]
    if at is None:
        return len(positions) // 2
    nearest = int(np.abs(positions - at).argmin())
    if not abs(positions[nearest] - at) <= abs(frame.steps[view.normal]):
        raise UsageError(
            f"no {view.name} slice at {view.normal} = {at!r} mm",
            expected=f"{positions.min():.1f} to {positions.max():.1f} mm",
        )
    return nearest


def _plane(volume: xr.DataArray, frame: Frame, view: View, index: int) -> Pixels:
    """Return the slice (rows, columns) of a view; read nothing else."""
    along = {axis: SPATIAL_DIMS[place] for axis, place in frame.order.items()}
    plane = volume.isel({along[view.normal]: index})
    return np.asarray(plane.transpose(along[view.rows], along[view.columns]).values)


def _panel(frame: Frame, view: View, key: float) -> tuple[NotebookFigure, Axes]:
    ends = {a: sorted(frame.extent(a)) for a in (view.rows, view.columns)}
    window = Window({a: e[0] for a, e in ends.items()}, {a: e[1] for a, e in ends.items()})
    width, height = window.length(view.columns), window.length(view.rows)
    scale = _LONGER / max(width, height)
    size = width * scale + key, max(height * scale + _CAPTION, _LEAST)
    figure = NotebookFigure(figsize=size, facecolor=PAPER)
    FigureCanvasAgg(figure)  # without pyplot: no open figures, no window system
    share = height * scale / size[1]
    box = (0.0, 1 - _CAPTION / size[1] - share, width * scale / size[0], share)
    return figure, add_panel(figure, box, view, window, view.name)


def _masks(
    masks: xr.DataArray | xr.Dataset | None, structures: Sequence[str] | None, grid: Grid
) -> Iterator[tuple[str, xr.DataArray]]:
    if masks is None:
        if structures is not None:
            raise UsageError(
                f"structures {list(structures)} without masks",
                expected="masks too, e.g. `masks=patient.clinical`",
            )
        return
    array = masks["mask"] if isinstance(masks, xr.Dataset) else masks
    if structures is None:
        structures = [str(s) for s in np.atleast_1d(array["structure"].values)]
    for name in structures:
        mask = single_volume(select_structure(array, name))
        _require_same(grid, grid_of(mask))
        yield name, mask


def _require_same(image: Grid, mask: Grid) -> None:
    limit = _SAME_VOXEL * float(image.spacing_mm.min())
    if image.shape != mask.shape or (
        largest_shift(image.affine, mask.affine, image.shape[::-1]) > limit
    ):
        raise UsageError(
            f"masks of {mask.shape} voxels from {mask.affine[:3, 3]} do not lie "
            f"on the image's, {image.shape} from {image.affine[:3, 3]}",
            remedy="crop and resample both alike, e.g. `masks.lp.resample_like(image)`",
        )


def _describe(axes: Axes, data: xr.DataArray, frame: Frame, view: View, index: int) -> None:
    place = f"{view.normal} = {frame.positions[view.normal][index]:.1f} mm".replace("-", "−")
    if frame.oblique:
        place = f"slice {index + 1} of {len(frame.positions[view.normal])}, oblique"
    labels = [str(c.values) for n, c in data.coords.items() if n == "modality" and not c.ndim]
    text = "  ·  ".join((*labels, view.name, place))
    axes.set_title(f" {text}", color=INK, fontsize=10, loc="left", pad=5)


def _add_key(axes: Axes, handles: list[Any]) -> None:
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
