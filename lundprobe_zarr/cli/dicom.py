"""`export --format dicom`: its options and what it says."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.storage.location import Location


class Format(StrEnum):
    """Formats of `export`."""

    nifti = "nifti"
    dicom = "dicom"


FormatOption = Annotated[
    Format,
    typer.Option("--format", help="NIfTI files as in the source, or DICOM and DICOM-RT."),
]
StructuresOption = Annotated[
    str | None,
    typer.Option("--structures", help="DICOM: structures to write, with commas; else all."),
]
SourcesOption = Annotated[
    str | None,
    typer.Option(
        "--sources",
        help="DICOM: sources of segmentations, with commas, of clinical, nnunet, nnunet_fold, "
        "observer; else all.",
    ),
]
Tg263Option = Annotated[
    bool, typer.Option("--tg263", help="DICOM: name structures as AAPM TG-263 does.")
]
PositionOption = Annotated[
    str,
    typer.Option(
        "--patient-position",
        help="DICOM: Patient Position of the images, e.g. HFS, which the dataset does not know.",
    ),
]


def refuse_options(**given: Any) -> None:
    """Raise `UsageError` if an option for DICOM alone was given for another format."""
    for name, value in given.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} without --format dicom",
                remedy="add --format dicom, or leave the option out",
            )


def export_as_dicom(
    location: Location,
    patient: str,
    out: Path,
    structures: str | None,
    sources: str | None,
    tg263: bool,
    position: str,
) -> None:
    """Write a patient as DICOM and say what was written."""
    from lundprobe_zarr.cli.console import count, say, table
    from lundprobe_zarr.cli.phantom import steps
    from lundprobe_zarr.exchange.dicom.export import DicomOptions, export_dicom, volumes_read

    options = DicomOptions(_listed(structures), _listed(sources), tg263, position)
    with steps("Exporting", volumes_read(location, patient, options)) as step:
        written = export_dicom(location, patient, out, options, on_volume=step)
    files = sum(o["files"] for o in written.objects)
    say(f"Wrote {count(files, 'file')} to {written.folder.resolve()}.")
    rows = [(o["name"], str(o["files"]), _error(o)) for o in written.objects]
    table(("object", "files", "values"), rows, right=("files",))


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _error(written: dict[str, Any]) -> str:
    """Return how far an object's values are from the store's."""
    if "max_abs_error_gy" in written:
        return f"rounded, by at most {written['max_abs_error_gy']:.2g} Gy"
    if written.get("max_abs_error"):
        return f"rounded to whole HU, by at most {written['max_abs_error']:.3g} HU"
    if dropped := sum(written.get("dropped_contours", {}).values()):
        return f"without {dropped} contours of fewer than three points"
    return "exact"
