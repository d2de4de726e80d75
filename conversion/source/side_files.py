"""The authors' side files: geometry table, missing structures, connected components.

Parsers take text and never raise for its contents: a broken side file is a finding, and the
patients are converted. Findings become part of the dataset. They quote only patient ids, never
other cells or names.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from lundprobe_zarr.conversion.source.text import parse_number, read_text
from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.vocabulary.files import KNOWN_FILES, structure_of_name
from lundprobe_zarr.vocabulary.names import PARTS, is_patient_id

#: The table has voxel sizes with four decimals, e.g. 0.4688 for 0.46875 mm.
CSV_TOLERANCE_MM = 1e-3

#: Size limit. Real files have some hundred bytes per patient.
_MAX_BYTES = 1 << 24

#: Characters around the numbers of a cell: of tuples, lists or NumPy's types.
_TUPLE = re.compile(r"(?:np\.\w+|array)?\(|[)\[\]]")
_BETWEEN = re.compile(r"[ \t]*,[ \t]*|[ \t]+")
_PATIENT = re.compile(r"(?:oldAcq|newAcq)_[0-9a-f]{16}")
_MASK_FILE = re.compile(r"mask_\w+")
#: A patient's folder as a whole word of a path, with / or \\.
_FOLDER = re.compile(r"(?<![\w-])(MR_StorT2|sCT)(?![\w-])")
_SUFFIX = ".nii.gz"

#: Columns of the geometry table: grid -> (matrix, voxel size).
_CSV_COLUMNS = {
    "sct": ("sCTMatrixSizeOrig", "sCTVoxelSizeOrig (mm)"),
    "mri": ("mriMatrixSize", "mriVoxelSize (mm)"),
    "dose": ("doseMatrixSizeOrig", "doseVoxelSizeOrig"),
}

Geometry = dict[str, tuple[tuple[int, ...], tuple[float, ...]]]


@dataclass
class SideFiles:
    """Contents of one part's side files, by patient, and their findings.

    `geometry`: grid -> (shape (z, y, x), spacing (z, y, x) in mm). `missing`: names of clinical
    structures. `multi_component`: mask files, see `parse_components`. The two are None if there is
    no readable list.
    """

    geometry: dict[str, Geometry] = field(default_factory=dict)
    missing: dict[str, tuple[str, ...]] | None = None
    multi_component: dict[str, tuple[str, ...]] | None = None
    findings: list[str] = field(default_factory=list)


def read_side_files(root: Path, part: str) -> SideFiles:
    """Read the side files of `part` (`base` or `extended`) below the source root."""
    side = SideFiles()
    suffix = f"{part}Part"
    text = _read(root / f"patGeometryInformation_{suffix}.csv", side)
    if text is not None:
        side.geometry = parse_geometry(text, f"patGeometryInformation_{suffix}.csv", side.findings)
    text = _read(root / f"missingStructures_{suffix}.json", side)
    if text is not None:
        side.missing = parse_missing(text, f"missingStructures_{suffix}.json", side.findings)
    name = f"StructuresMoreThan1ConComp_{suffix}.txt"
    text = _read(root / name, side)
    if text is not None:
        side.multi_component = parse_components(text, name, side.findings)
    return side


def side_file_names() -> tuple[str, ...]:
    """Return the names of all side files of both parts."""
    return tuple(
        name.format(f"{part}Part")
        for part in PARTS
        for name in (
            "patGeometryInformation_{}.csv",
            "missingStructures_{}.json",
            "StructuresMoreThan1ConComp_{}.txt",
        )
    )


def _read(path: Path, side: SideFiles) -> str | None:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # a pipe or device may never end
            side.findings.append(f"{path.name}: not a file; expected text")
            return None
        if status.st_size > _MAX_BYTES:
            side.findings.append(f"{path.name}: {status.st_size} bytes; expected text of some kB")
            return None
        return read_text(path, _MAX_BYTES).text
    except FileNotFoundError:
        side.findings.append(f"{path.name}: not found")
    except OSError as error:
        side.findings.append(f"{path.name}: cannot be read ({error.strerror})")
    except ValueError as error:
        side.findings.append(f"{path.name}: {error}")
    return None


def parse_geometry(text: str, name: str, findings: list[str]) -> dict[str, Geometry]:
    """Return the rows of the geometry table by patient; add unreadable rows to `findings`.

    Cells are Python tuples as text: matrix (rows, columns, slices) = (y, x, z), voxel size
    (x, y, z) in mm, possibly in NumPy 2's form.
    """
    rows: dict[str, Geometry] = {}
    try:
        _read_rows(csv.DictReader(io.StringIO(text), delimiter=";"), rows, name, findings)
    except csv.Error as error:  # such as a quote that is never closed
        findings.append(f"{name}: not a table ({error}); {len(rows)} rows were read")
    return rows


def _read_rows(
    reader: csv.DictReader[str], rows: dict[str, Geometry], name: str, findings: list[str]
) -> None:
    columns = [c.strip() for c in reader.fieldnames or []]
    wanted = ["patient", *(c for pair in _CSV_COLUMNS.values() for c in pair)]
    absent = [c for c in wanted if c not in columns]
    if absent:
        findings.append(f"{name}: no column {', '.join(absent)}; its geometry was not compared")
        return
    reader.fieldnames = columns
    for row in reader:
        patient = (row["patient"] or "").strip()
        if not is_patient_id(patient):  # it may be a name, so it is not quoted
            findings.append(f"{name}: line {reader.line_num}: names no patient id")
            continue
        try:
            rows[patient] = {grid: _cells(row, *pair) for grid, pair in _CSV_COLUMNS.items()}
        except ValueError as error:
            findings.append(f"{name}: line {reader.line_num} ({patient}): {error}")


def _cells(
    row: dict[str, str | None], matrix: str, voxel: str
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    rows, columns, slices = _tuple(row[matrix], matrix)
    x, y, z = _tuple(row[voxel], voxel)
    if not all(n.is_integer() for n in (rows, columns, slices)):
        raise ValueError(f"{matrix} is not three whole numbers")
    return (int(slices), int(rows), int(columns)), (z, y, x)


def _tuple(cell: str | None, column: str) -> list[float]:
    texts = _BETWEEN.split(_TUPLE.sub(" ", cell or "").strip().removesuffix(",").strip())
    try:
        numbers = [parse_number(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"{column} holds {error}; expected three numbers") from None
    if len(numbers) != 3:
        comma = ", as with decimal commas" if len(numbers) == 6 else ""
        raise ValueError(f"{column} holds {len(numbers)} numbers{comma}; expected three")
    return numbers


def parse_missing(text: str, name: str, findings: list[str]) -> dict[str, tuple[str, ...]] | None:
    """Return missing structures by patient, from file or structure names; None if broken."""
    try:
        raw = parse_json(text)
    except ValueError as error:
        findings.append(f"{name}: not JSON ({error})")
        return None
    if not isinstance(raw, dict):
        findings.append(f"{name}: a {type(raw).__name__}; expected an object of lists")
        return None
    missing: dict[str, tuple[str, ...]] = {}
    invalid = [patient for patient in raw if not is_patient_id(patient)]
    if invalid:
        findings.append(f"{name}: {len(invalid)} of its keys are no patient id")
    for patient, names in ((p, n) for p, n in raw.items() if p not in invalid):
        listed = names if isinstance(names, list) else [names]
        found = [structure_of_name(n) if isinstance(n, str) else None for n in listed]
        missing[patient] = tuple(s for s in found if s is not None)
        unknown = [n for n, s in zip(listed, found, strict=True) if s is None]
        if unknown:
            findings.append(f"{name}: {patient}: {len(unknown)} of its names are no structure's")
    return missing


def parse_components(text: str, name: str, findings: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the masks listed with several components, each once and in order, by patient.

    Lines are free text with a mask file and a patient. A mask is its path below the patient's
    folder. If a line names no folder and the patient has such a file in two, it is the file's name
    alone.
    """
    found: dict[str, dict[str, None]] = {}
    matched = False
    for line in text.split("\n"):
        mask, patient = _MASK_FILE.search(line), _PATIENT.search(line)
        if mask is None or patient is None:
            continue
        matched = True
        path = _mask_path(mask.group(), _FOLDER.findall(line))
        if path is not None:
            found.setdefault(patient.group(), {})[path] = None
    if text.strip() and not matched:
        findings.append(f"{name}: no line names a mask file and a patient")
    return {patient: tuple(paths) for patient, paths in found.items()}


def _mask_path(stem: str, folders: list[str]) -> str | None:
    """Return the known path of a mask from its name and the folders of its line; else None."""
    file = f"{stem}{_SUFFIX}"
    paths = [path for path in KNOWN_FILES if path.rpartition("/")[2] == file]
    if len(set(folders)) == 1:
        paths = [path for path in paths if path.split("/")[0] in folders]
    if len(paths) > 1:
        return file
    return paths[0] if paths else None
