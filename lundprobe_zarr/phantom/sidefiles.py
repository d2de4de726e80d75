"""Write the text files beside the patients in the form of the authors' scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lundprobe_zarr.phantom.grids import Grid
from lundprobe_zarr.phantom.patient import Record

#: The trailing space is in the authors' files too.
CSV_HEADER = (
    "patient;sCTMatrixSizeOrig;sCTVoxelSizeOrig (mm);mriMatrixSize;mriVoxelSize (mm);"
    "doseMatrixSizeOrig;doseVoxelSizeOrig;doseMin (Gy);doseMax (Gy) "
)

_NOTICE = """\
# SYNTHETIC PHANTOM - not patient data

Everything in this folder was computed from formulas and a random seed. No image, contour, dose or
number in it comes from a patient, from a scanner or from the LUND-PROBE dataset; the patient
identifiers are invented. It imitates the *form* of that dataset (names, headers, types, grids), so
that software can be built and tested without access to it.

Do not use it for research on patients, for training models that are to meet patients, or for any
clinical purpose, and do not cite it as LUND-PROBE.

Arguments: {arguments}
"""


def write_notice(root: Path, arguments: str) -> None:
    """Write SYNTHETIC.md, which describes this tree and the arguments that made it."""
    (root / "SYNTHETIC.md").write_text(_NOTICE.format(arguments=arguments), encoding="utf-8")


def write_side_files(root: Path, part: str, records: Sequence[Record]) -> None:
    """Write the geometry table, the missing structures and the components of one part."""
    rows = [CSV_HEADER] + [_row(r, numpy2=i % 3 == 1) for i, r in enumerate(records)]
    _write(root / f"patGeometryInformation_{part}Part.csv", rows)
    missing = {r.patient_id: [f"mask_{s}.nii.gz" for s in r.missing] for r in records if r.missing}
    _write(root / f"missingStructures_{part}Part.json", [json.dumps(missing, indent=4)])
    lines = [line for r in records for line in _component_lines(r, part)]
    _write(root / f"StructuresMoreThan1ConComp_{part}Part.txt", lines)


def _row(record: Record, numpy2: bool) -> str:
    cells = [record.patient_id]
    for grid in (record.grids.sct, record.grids.mri, record.grids.dose):
        cells += [_matrix(grid), _voxel(grid, numpy2)]
    return ";".join([*cells, *(repr(v) for v in record.dose_gy)])


def _matrix(grid: Grid) -> str:
    nz, ny, nx = grid.shape
    return str((ny, nx, nz))


def _voxel(grid: Grid, numpy2: bool) -> str:
    if numpy2:  # the form of NumPy 2 for its scalars inside a tuple
        return f"({', '.join(f'np.float64({s!r})' for s in grid.spacing)})"
    return str(grid.spacing)


def _component_lines(record: Record, part: str) -> list[str]:
    """Return lines with count and path for masks on the MRI grid, and bare paths for others."""
    lines = []
    for path, count in record.components.items():
        folder, _, name = path.rpartition("/")
        place = f"/data/LUND-PROBE/{part}Part/{record.patient_id}/{folder}"
        if folder == "sCT":
            lines.append(f"{place}/{name}")
        else:
            lines.append(f"Number of connected components in {name}: {count} for patient {place}")
    return lines


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
