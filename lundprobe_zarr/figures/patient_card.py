"""A patient in a notebook: a slice with contours, and what the patient has."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.figures.planes import TARGET
from lundprobe_zarr.figures.thumbnail import slice_jpeg
from lundprobe_zarr.vocabulary.markup import summary_html
from lundprobe_zarr.vocabulary.names import STRUCTURES

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Patient

_WIDTH = 320  # pixels on the screen


def patient_card(patient: Patient) -> str:
    """Return the HTML of a patient: an axial T2w slice through the CTV, and facts of the tables.

    This reads one slice. If the store cannot be read, the error stands in place of the picture.
    """
    facts = dict(_facts(patient.row))
    try:
        jpeg = slice_jpeg(patient.location, patient.patient_id, _middle(patient))
    except (LundProbeError, OSError) as error:
        picture = f"<p>{escape(str(error))}</p>"
    else:
        data = base64.b64encode(jpeg).decode("ascii")
        picture = (
            f'<img width="{_WIDTH}" alt="axial T2w slice through the CTV with clinical '
            f'structures" src="data:image/jpeg;base64,{data}">'
        )
    return summary_html(f"Patient {patient.patient_id}", facts) + picture


def _facts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "part, protocol", f"{row['part']}, {row['protocol']}"
    for grid, name in (("mri", "MRI"), ("sct", "synthetic CT"), ("dose", "dose")):
        yield f"{name} grid (z, y, x)", _grid(row[f"{grid}_shape"], row[f"{grid}_spacing_mm"])
    lacking = [s for s in STRUCTURES if row[f"missing_{s}"]]
    present = [s for s in STRUCTURES if s not in lacking]
    yield "structures (clinical, MRI grid)", ", ".join(present) or "none"
    yield "not delineated", ", ".join(lacking) or "none"
    if row["dose_max_gy"] is not None:
        yield "dose", f"{row['dose_min_gy']:.1f} to {row['dose_max_gy']:.1f} Gy"
    if row["findings"]:
        yield "findings", "; ".join(row["findings"])


def _grid(shape: list[int] | None, spacing: list[float] | None) -> str:
    if shape is None or spacing is None:
        return "none"
    return f"{'×'.join(map(str, shape))} voxels of {'×'.join(f'{mm:g}' for mm in spacing)} mm"


def _middle(patient: Patient) -> list[float] | None:
    """Return the middle voxel (z, y, x) of the CTV on the MRI grid; None if there is none."""
    for row in patient.dataset.patient_rows("structures", patient.patient_id).to_pylist():
        clinical = row["source"] == "clinical" and row["grid"] == "mri"
        if clinical and row["structure"] == TARGET and row["bbox_start"] is not None:
            pairs = zip(row["bbox_start"], row["bbox_stop"], strict=True)
            return [(start + stop - 1) / 2 for start, stop in pairs]
    return None
