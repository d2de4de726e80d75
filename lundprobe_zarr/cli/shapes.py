"""Options of `export` for a cohort, a choice of files, other voxels and other names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.choosing import names
from lundprobe_zarr.cli.status import FAILED
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.vocabulary.names import is_patient_id

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort
    from lundprobe_zarr.exchange.cohort import CohortExport
    from lundprobe_zarr.exchange.shaped import Shape

Patients = Annotated[
    list[str],
    typer.Argument(
        help="Patients' ids; without any, all.",
        metavar="PATIENT",
        default_factory=list,
        show_default=False,
    ),
]
Structures = Annotated[
    str | None, typer.Option(metavar="A,B", help="Only masks of these structures.")
]
Sources = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Only masks of these: clinical, nnunet, nnunet_fold, observer."
    ),
]
Arrays = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Only these: T2w, sCT, dose, mask, fiducials, uncertainty."),
]
Grids = Annotated[
    str | None, typer.Option(metavar="A,B", help="Only files on these grids: mri, sct, dose.")
]
Crop = Annotated[
    str | None,
    typer.Option(
        metavar="STRUCTURE[:MM]",
        help="Crop to a structure's box and a margin, e.g. PTVT_427:20mm.",
    ),
]
Resample = Annotated[
    str | None,
    typer.Option(metavar="MM", help="Resample to this voxel size: one number, or z,y,x."),
]
LayoutName = Annotated[
    str, typer.Option("--layout", help="Names of files: source, as in the source tree; or bids.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Patients at once [default: one a core].")]

_CROP = re.compile(r"(?P<structure>[^:]+)(?::(?P<margin>\d+(?:\.\d*)?)(?:\s*mm)?)?")


def shape_of(
    structures: str | None,
    sources: str | None,
    arrays: str | None,
    grids: str | None,
    crop: str | None,
    resample: str | None,
    layout: str,
) -> Shape:
    """Return what the options ask for. Raises `UsageError` or `UnknownLabelError`."""
    from lundprobe_zarr.exchange.choice import Choice
    from lundprobe_zarr.exchange.shaped import Shape
    from lundprobe_zarr.patches.frame import Frame

    given = {"arrays": arrays, "structures": structures, "sources": sources, "grids": grids}
    chosen = Choice(**{name: names(f"--{name}", text) for name, text in given.items()})
    structure, margin = _cropped(crop)
    frame = Frame(_spacing(resample), structure, margin)
    return Shape(chosen, frame, layout)  # type: ignore[arg-type]  # Shape checks it


def _cropped(text: str | None) -> tuple[str | None, float]:
    if text is None:
        return None, 0.0
    match = _CROP.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"--crop {text!r}", expected="a structure and a margin in mm, e.g. PTVT_427:20mm"
        )
    return match["structure"].strip(), float(match["margin"] or 0)


def _spacing(text: str | None) -> float | tuple[float, ...] | None:
    if text is None:
        return None
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (1, 3):
        raise UsageError(
            f"--resample {text!r}", expected="mm: one number, or z,y,x, e.g. 1.5 or 3,1,1"
        )
    return sizes[0] if len(sizes) == 1 else sizes


def cohort_of(
    dataset: str,
    storage_options: Mapping[str, Any],
    patients: list[str],
    where: str | None,
    out: Path,
) -> Cohort:
    """Return the patients that were named, or all, for whom the condition is true.

    Raises `UsageError` if a patient's id stands where the output folder belongs.
    """
    from lundprobe_zarr.cohort import open_cohort

    if is_patient_id(out.name) and not out.exists():
        raise UsageError(
            f"the output folder would be {str(out)!r}, a patient's id",
            expected="DATASET [PATIENT...] OUT",
            remedy="name the folder to write into last",
        )
    cohort = open_cohort(dataset, storage_options)
    cohort = cohort[patients] if patients else cohort
    chosen = cohort if where is None else cohort.where(where)
    if not len(chosen):
        raise UsageError(f"--where {where!r} is true for none of {len(cohort)} patients")
    return chosen


def run(cohort: Cohort, out: Path, shape: Shape, workers: int | None) -> int:
    """Export with progress, print the outcome and return the exit status."""
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.exchange.cohort import export_cohort

    with steps("Exporting", len(cohort)) as step:
        found = export_cohort(cohort, out, shape, workers, on_patient=step)
    _show(found, out)
    return FAILED if found.failed else 0


def _show(found: CohortExport, out: Path) -> None:
    from lundprobe_zarr.cli.console import count, failures, listing, say
    from lundprobe_zarr.exchange.cohort import REPORT

    files = count(sum(len(w.files) for w in found.written.values()), "file")
    patients = count(len(found.written), "patient")
    say(f"Wrote {files} of {patients} to {out.resolve()}.")
    if found.before:
        say(f"{count(len(found.before), 'patient')} of before, there and whole.")
    for title, field in (
        ("Not there, so without a file", "missing"),
        ("Without a voxel in the box, so without a file", "empty"),
        ("With the values that conversion rounded", "rounded"),
        ("Without the free text of the header, which conversion left out", "stripped"),
    ):
        if paths := [p for w in found.all.values() for p in getattr(w, field)]:
            say(f"{title}: {count(len(paths), 'file')}")
            listing(paths, most=10)
    failures(found.failed)
    say(f"All of it is listed in {out.resolve() / REPORT}.")
