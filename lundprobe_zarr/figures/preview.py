"""Draw a preview of a patient: one PNG with anatomy, delineations, dose and observer consensus.

Radiological convention: the patient's right is at the left of axial and coronal views.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.figures.layout import MARGIN, WIDTH, Row, row_height
from lundprobe_zarr.figures.notebook import require_png, save_png
from lundprobe_zarr.figures.paint import FAINT, PAPER, YELLOW
from lundprobe_zarr.figures.panels import plan_rows
from lundprobe_zarr.figures.planes import TARGET, Preview, read_preview
from lundprobe_zarr.storage.location import Location

#: Heights of the header, of a note in it, and of the space below notes, inches.
_HEADER, _NOTE, _AFTER_NOTES = 0.78, 0.22, 0.08


def save_preview(location: Location, patient_id: str, out: Path, *, dpi: int = 150) -> None:
    """Write a picture of one patient to `out`, a `.png` file; replace an existing file.

    It shows axial, coronal and sagittal slices through the CTV's centroid; see `draw_preview`.
    `dpi` is pixels per inch, at a width of 12 inches. Raises `UsageError` if `out` is no `.png`,
    `DamagedStoreError` if the patient cannot be read, and `OSError` if `out` cannot be written.
    """
    require_png(out)
    if dpi <= 0:
        raise UsageError(f"dpi is {dpi}", expected="a positive number of pixels per inch, e.g. 150")
    figure = draw_preview(read_preview(location, patient_id))
    save_png(figure, out, dpi=dpi, metadata={"Title": patient_id})


def draw_preview(preview: Preview) -> Figure:
    """Draw a patient: rows of T2w with contours, of dose, and of consensus if extended.

    Panels are axes in mm (LPS) labelled `<row> <view>`, e.g. `anatomy axial`. Every contour is a
    collection labelled with the structure or level that it outlines.
    """
    rows, notes = plan_rows(preview), _notes(preview)
    head = _HEADER + _NOTE * len(notes) + (_AFTER_NOTES if notes else 0.0)
    total = head + sum(row_height(height) for height, _ in rows)
    figure = Figure(figsize=(WIDTH, total), facecolor=PAPER)
    FigureCanvasAgg(figure)
    _draw_header(figure, preview, notes)
    top = total - head
    for height, draw in rows:
        row = Row(figure, top, height)
        draw(row)
        top = row.end
    return figure


def _draw_header(figure: Figure, preview: Preview, notes: Sequence[str]) -> None:
    row = Row(figure, float(figure.get_size_inches()[1]), 0.0)
    row.text(MARGIN, row.top - 0.13, preview.patient_id, fontsize=17, fontweight="bold")
    facts = (
        f"{preview.part} part",
        f"{preview.protocol} protocol",
        f"MRI grid {_grid(preview)}",
    )
    row.text(MARGIN, row.top - 0.46, "  ·  ".join(facts), fontsize=10, color=FAINT)
    for number, note in enumerate(notes):
        y = row.top - _HEADER + 0.04 - number * _NOTE
        row.text(MARGIN, y, note, fontsize=10, color=YELLOW)
    if preview.synthetic:
        _draw_badge(row)


def _draw_badge(row: Row) -> None:
    row.text(
        WIDTH - MARGIN - 0.1,
        row.top - 0.2,
        "SYNTHETIC PHANTOM – not a patient",
        ha="right",
        fontsize=14,
        fontweight="bold",
        color="black",
        bbox={"facecolor": YELLOW, "edgecolor": "none", "boxstyle": "round,pad=0.35"},
    )


def _grid(preview: Preview) -> str:
    frame = preview.frame
    sizes = " × ".join(f"{abs(frame.steps[a]):.3g}" for a in "xyz")
    return f"{' × '.join(str(len(frame.positions[a])) for a in 'xyz')}, {sizes} mm (x, y, z)"


def _notes(preview: Preview) -> list[str]:
    notes = []
    if not preview.on_target:
        state = "missing" if TARGET in preview.missing else "empty"
        notes.append(f"{TARGET} is {state}: the slices pass through the centre of the volume.")
    if preview.frame.oblique:
        notes.append(
            "Oblique grid: drawn by voxel index, in proportion to the voxel size; "
            "letters name the nearest side of the patient."
        )
    if not preview.dose:
        notes.append("No dose on the MRI grid.")
    return notes
