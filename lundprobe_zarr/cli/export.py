"""`export` and `preview`: patients out of a dataset, as NIfTI or DICOM files, or a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lundprobe_zarr.cli import dicom, shapes
from lundprobe_zarr.cli.choosing import Where
from lundprobe_zarr.cli.place import (
    Dataset,
    PredictionsPlace,
    StorageOptions,
    locate,
    open_stored,
    parse_options,
)
from lundprobe_zarr.errors import UsageError

PatientId = Annotated[str, typer.Argument(help="A patient's id.", metavar="PATIENT")]


def export(
    dataset: Dataset,
    patients: shapes.Patients,
    out: Annotated[Path, typer.Argument(help="Folder to write into. It may hold other patients.")],
    where: Where = None,
    structures: shapes.Structures = None,
    sources: shapes.Sources = None,
    arrays: shapes.Arrays = None,
    grids: shapes.Grids = None,
    crop: shapes.Crop = None,
    resample: shapes.Resample = None,
    layout: shapes.LayoutName = "source",
    workers: shapes.Workers = None,
    predictions: PredictionsPlace = None,
    storage_options: StorageOptions = None,
    format: dicom.FormatOption = dicom.Format.nifti,
    tg263: dicom.Tg263Option = False,
    patient_position: dicom.PositionOption = "",
) -> None:
    """Write patients back as the NIfTI files they came from, in other shapes, or as DICOM.

    Each file is compared with the hash of the original's uncompressed bytes. Files whose values
    conversion rounded are listed instead. Files without the free text of the header (`convert
    --strip-headers`) are compared with the original without it.
    A patient's folder appears once it is complete: run an interrupted export again.

    With options, or several patients, the same command continues an export; `export_report.json`
    lists the files, and structures that patients lack, which have no file. Cropped and resampled
    files hold the voxels of `data.lp.resample(…).lp.crop(…)`: linear, masks at one half.

    As DICOM (extra `dicom`): series of images, structure sets, dose, segmentations and uncertainty
    maps of each patient, with a report of what was rounded.
    """
    options = parse_options(storage_options)
    if format is dicom.Format.dicom:
        other = {"arrays": arrays, "grids": grids, "crop": crop, "resample": resample}
        not_source = None if layout == "source" else layout
        how = "with --format dicom"
        dicom.refuse(how, **other, layout=not_source, workers=workers, predictions=predictions)
        what = dicom.options_of(structures, sources, tg263, patient_position)
        chosen = shapes.cohort_of(dataset, options, patients, where, out)
        raise typer.Exit(dicom.run(locate(dataset, storage_options), chosen, out, what))
    dicom.refuse("without --format dicom", tg263=tg263, patient_position=patient_position)
    shape = shapes.shape_of(structures, sources, arrays, grids, crop, resample, layout)
    if where is None and shape.is_plain and len(patients) == 1:
        _export_as_it_was(dataset, patients[0], out, predictions, options)
        return
    if predictions is not None:
        raise UsageError(
            "--predictions beside options that choose or change files, or several patients",
            expected="one patient and no such option",
            remedy="export the predictions of each patient by itself",
        )
    chosen = shapes.cohort_of(dataset, options, patients, where, out)
    raise typer.Exit(shapes.run(chosen, out, shape, workers))


def _export_as_it_was(
    dataset: str, patient: str, out: Path, predictions: str | None, options: Mapping[str, Any]
) -> None:
    """Write a patient's files as in the source, and print how exact they are."""
    from lundprobe_zarr.cli.console import count, listing, say
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.exchange.nifti import export_patient
    from lundprobe_zarr.stores.opening import open_store

    cohort = open_cohort(dataset, options)
    known = cohort[patient].patient_id
    total = len(open_store(cohort.location, known).records)
    found = open_stored(predictions, options)
    with steps("Exporting", total) as step:
        exported = export_patient(cohort.location, known, out, step, found)
    total += len(exported.predicted)
    say(f"Wrote {count(total, 'file')} to {out.resolve()}.")
    say(f"{len(exported.identical)} byte for byte the original's (uncompressed, SHA-256 compared)")
    if exported.predicted:
        say(f"{len(exported.predicted)} masks of predictions, in folders `predictions`")
    if exported.stripped:
        say(
            f"{len(exported.stripped)} with every voxel, without the free text of the header, "
            "which conversion left out (--strip-headers)"
        )
    if exported.rounded:
        say(f"{len(exported.rounded)} with the values that conversion rounded:")
        listing(exported.rounded, most=100)


def preview(
    dataset: Dataset,
    patient: PatientId,
    out: Annotated[Path, typer.Argument(help="Picture to write.", metavar="OUT.png")],
    storage_options: StorageOptions = None,
) -> None:
    """Draw a patient's images, contours and dose as a PNG."""
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.figures.preview import save_preview

    if out.suffix.lower() != ".png":
        raise UsageError("expected a name that ends in .png", where=out)
    known = open_cohort(dataset, parse_options(storage_options))[patient].patient_id
    save_preview(locate(dataset, storage_options), known, out)
    say(f"Drew {known} into {out.resolve()}.")
