"""`export --format dicom`: its options and what it says."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.choosing import names
from lundprobe_zarr.cli.status import FAILED
from lundprobe_zarr.errors import LundProbeError, MissingPackageError, UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort
    from lundprobe_zarr.exchange.dicom.options import DicomOptions
    from lundprobe_zarr.storage.location import Location


class Format(StrEnum):
    """Formats of `export`."""

    nifti = "nifti"
    dicom = "dicom"


FormatOption = Annotated[
    Format,
    typer.Option("--format", help="NIfTI files as in the source, or DICOM and DICOM-RT."),
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


def refuse(how: str, **given: Any) -> None:
    """Raise `UsageError` for the first option that was given, which means nothing `how`."""
    for name, value in given.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} {how}", remedy="leave one of the options out"
            )


def options_of(
    structures: str | None, sources: str | None, tg263: bool, position: str
) -> DicomOptions:
    """Return what the options ask for. Raises `UsageError` or `UnknownLabelError`."""
    from lundprobe_zarr.exchange.dicom.options import DicomOptions

    return DicomOptions(
        names("--structures", structures), names("--sources", sources), tg263, position
    )


def run(location: Location, cohort: Cohort, out: Path, options: DicomOptions) -> int:
    """Write patients, say what was written, and return the exit status.

    Of several patients those that are there, of the same stores and options, are left as they are,
    and one that fails does not end the others. Raises as `export_dicom` does for a single one.
    """
    from lundprobe_zarr.cli.console import failures, say
    from lundprobe_zarr.exchange.dicom.export import is_written

    ids = [patient.patient_id for patient in cohort]
    failed: dict[str, str | None] = {}
    for patient_id in ids:
        try:
            if len(ids) > 1 and is_written(location, patient_id, out, options):
                say(f"{patient_id}: there from an earlier run")
            else:
                _export(location, patient_id, out, options)
        except LundProbeError as error:
            if len(ids) == 1 or isinstance(error, MissingPackageError):
                raise
            failed[patient_id] = str(error)
    failures(failed)
    return FAILED if failed else 0


def _export(location: Location, patient_id: str, out: Path, options: DicomOptions) -> None:
    from lundprobe_zarr.cli.console import count, say, table
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.exchange.dicom.export import export_dicom, volumes_read

    with steps("Exporting", volumes_read(location, patient_id, options)) as step:
        written = export_dicom(location, patient_id, out, options, on_volume=step)
    files = sum(o["files"] for o in written.objects)
    say(f"Wrote {count(files, 'file')} to {written.folder.resolve()}.")
    rows = [(o["name"], str(o["files"]), _error(o)) for o in written.objects]
    table(("object", "files", "values, against the dataset"), rows, right=("files",))


def _error(written: dict[str, Any]) -> str:
    """Return how far an object's values are from the store's."""
    if "max_abs_error_gy" in written:
        return f"rounded, by at most {written['max_abs_error_gy']:.2g} Gy"
    if written.get("max_abs_error"):
        return f"rounded to whole HU, by at most {written['max_abs_error']:.3g} HU"
    if dropped := sum(written.get("dropped_contours", {}).values()):
        return f"without {dropped} contours of fewer than three points"
    return "exact"
