"""`export-nnunet`: patients as a raw dataset of nnU-Net."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.choosing import Where, names
from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
from lundprobe_zarr.cli.status import FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from lundprobe_zarr.cohort import Cohort, Splits
    from lundprobe_zarr.exchange.nnunet import NnUNetReport, Progress


class Missing(StrEnum):
    """What becomes of patients who lack a structure."""

    skip = "skip"
    ignore = "ignore"


class Grid(StrEnum):
    """Grid of channels and labels."""

    mri = "mri"
    sct = "sct"


OutFolder = Annotated[Path, typer.Argument(help="nnU-Net's raw folder, $nnUNet_raw.")]
DatasetId = Annotated[int, typer.Option(help="Dataset id of nnU-Net, 1 to 999.")]
Labels = Annotated[
    str, typer.Option(metavar="NAME[,NAME...]", help="Structures, in the order of labels.")
]
Name = Annotated[str, typer.Option(help="Name of nnU-Net's dataset.")]
Channels = Annotated[
    str,
    typer.Option(
        metavar="NAME[,NAME...]",
        help="T2w, sCT or both. Their names in nnU-Net are T2w and CT, by which it normalises; "
        "sCT=zscore gives another name.",
    ),
]
Regions = Annotated[
    bool,
    typer.Option("--regions", help="Keep overlaps: structures are regions of several labels."),
]
Priority = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME...]",
        help="Structures that win shared voxels, first to last [default: canonical order].",
    ),
]
HowMissing = Annotated[
    Missing,
    typer.Option(help="Leave out patients who lack a structure, or use nnU-Net's ignore label."),
]
GridOption = Annotated[Grid, typer.Option(help="T2w is on mri alone.")]
Fold = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Saved splits, or a saved cohort: patients, folds, test."),
]
Folds = Annotated[int, typer.Option(help="Folds of splits_final.json without saved splits.")]
Seed = Annotated[int, typer.Option(help="Seed of these folds.")]
Test = Annotated[
    str | None,
    typer.Option(metavar="PART|SQL", help="Patients for imagesTs, such as extended."),
]
Level = Annotated[int, typer.Option(help="Level of gzip, 1 to 9.")]
Workers = Annotated[int | None, typer.Option(help="Patients at a time [default: one a core].")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an export made with other settings.")
]


def export_nnunet(
    dataset: Dataset,
    out: OutFolder,
    dataset_id: DatasetId,
    labels: Labels,
    name: Name = "LUNDPROBE",
    channels: Channels = "T2w",
    regions: Regions = False,
    priority: Priority = None,
    missing: HowMissing = Missing.skip,
    grid: GridOption = Grid.mri,
    where: Where = None,
    fold: Fold = None,
    folds: Folds = 5,
    seed: Seed = 0,
    test: Test = None,
    level: Level = 3,
    workers: Workers = None,
    overwrite: Overwrite = False,
    storage_options: StorageOptions = None,
) -> None:
    """Write patients as a raw dataset of nnU-Net version 2.

    Voxels and geometry are those of the dataset. Patients who lack a structure are left out or get
    the ignore label, never background. The same command continues an interrupted export.
    lundprobe-export.json lists the patients, those left out and why, and structures that overlap.
    Exit status 1 if a patient could not be read.
    """
    from lundprobe_zarr.exchange.nnunet import export_nnunet as export

    cohort, splits = _cohort(dataset, where, fold, storage_options)

    def write(progress: Progress) -> NnUNetReport:
        return export(
            cohort,
            out,
            dataset_id,
            name,
            names("--labels", labels),
            channels=names("--channels", channels),
            regions=regions,
            priority=names("--priority", priority),
            missing=missing.value,
            grid=grid.value,
            test=None if test is None else _test(cohort, test),
            splits=splits,
            folds=folds,
            seed=seed,
            level=level,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )

    raise typer.Exit(_run(write, out, regions))


def _run(write: Callable[[Progress], NnUNetReport], out: Path, regions: bool) -> int:
    """Export with progress, print the outcome and return the exit status."""
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cli.interrupt import interruptible

    with interruptible(lambda: None) as interrupt, ExitStack() as stack:
        try:
            report = write(_progress(stack, regions))
        except KeyboardInterrupt:
            stack.close()
            say("Stopped. What is written stays; the same command continues.")
            return interrupt.status
    return _show(report, out)


def _cohort(
    dataset: str, where: str | None, fold: Path | None, storage_options: str | None
) -> tuple[Cohort, Splits[Cohort] | None]:
    """Return the patients that the options name, and their splits."""
    from lundprobe_zarr.cohort import load_cohort, load_splits, open_cohort

    options = parse_options(storage_options)
    is_cohort = fold is not None and _is_cohort(fold)
    cohort = (
        load_cohort(fold, dataset, options) if fold and is_cohort else open_cohort(dataset, options)
    )
    if where is not None:
        cohort = cohort.where(where)
    return cohort, load_splits(fold, cohort) if fold and not is_cohort else None


def _is_cohort(file: Path) -> bool:
    """Return whether a file is a saved cohort. What is neither, `load_splits` refuses."""
    from lundprobe_zarr.cohort.saved import SavedCohort
    from lundprobe_zarr.schema.document import parse_json

    try:
        held = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.get("kind") == SavedCohort.KIND


def _test(cohort: Cohort, test: str) -> Cohort:
    from lundprobe_zarr.vocabulary.names import PARTS

    return cohort.where(f"part = '{test}'" if test in PARTS else test)


def _progress(stack: ExitStack, regions: bool) -> Progress:
    """Return what shows progress: a bar or lines for each of the two rounds.

    Masks are read in the first one only for `regions`. Else it is short, and has no lines.
    """
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.cli.steps import steps, steps_on_terminal
    from lundprobe_zarr.exchange.nnunet import LOOKING, Progress

    step: list[Callable[[str], None]] = []
    done: list[str] = []

    def started(what: str, patients: int) -> None:
        stack.close()
        looks = what == LOOKING
        if not looks:
            say(f"{count(patients, 'patient')} to write." if patients else "Nothing to write.")
        shown = steps_on_terminal if looks and not regions else steps
        step[:] = [stack.enter_context(shown(what, patients))]
        done[:] = ["looked at" if looks else "written"]

    def finished(patient_id: str, error: str | None) -> None:
        for show in step:
            show(f"{patient_id} {done[0] if error is None else f'failed: {error}'}")

    return Progress(started, finished)


def _show(report: NnUNetReport, out: Path) -> int:
    from lundprobe_zarr.cli.console import count, failures, heading, listing, say, table
    from lundprobe_zarr.exchange.nnunet_folder import REPORT, SPLITS, TRAINING

    overlaps = report.overlaps()
    if len(overlaps):
        heading("Overlaps")
        rows = [
            (r["first"], r["second"], r["winner"] or "both", str(r["patients"]), f"{r['voxels']:,}")
            for r in overlaps.to_dict("records")
        ]
        columns = ("structure", "and", "label", "patients", "voxels")
        table(columns, rows, right=("patients", "voxels"))
    _show_findings(report)
    if report.left_out:
        heading(f"Left out: {count(len(report.left_out), 'patient')}")
        listing(f"{i}: {reason}" for i, reason in report.left_out.items())
    failures(report.failed)
    training = sum(n.subset == TRAINING for n in report.notes)
    say()
    say(
        f"{training} to train with, {len(report.notes) - training} to test with; "
        f"{report.kept} of them there before.",
        "bold",
    )
    say(f"Dataset: {report.folder.resolve()} ({REPORT} says more)")
    say(
        "Folds: none, too few patients; nnU-Net makes its own"
        if report.folds is None
        else f"Folds: {len(report.folds)} in {SPLITS}, which nnU-Net takes over when it plans"
    )
    if report.failed:
        say("Next: fix the cause and run the same command; it writes only what is missing.")
        return FAILED
    number = report.settings["dataset_id"]
    say(
        f"Next: nnUNet_raw={shlex.quote(str(out.resolve()))} "
        f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity"
    )
    return 0


def _show_findings(report: NnUNetReport) -> None:
    """Print who has ignored voxels, hidden structures, and voxels that are no numbers."""
    from lundprobe_zarr.cli.console import count, heading, listing

    ignored = [n for n in report.notes if n.absent]
    if ignored:
        heading(f"With the ignore label: {count(len(ignored), 'patient')}")
        listing(f"{n.patient_id}: lacks {', '.join(n.absent)}" for n in ignored)
    hidden = [n for n in report.notes if n.hidden]
    if hidden:
        heading("With structures of which others won every voxel: see --priority")
        listing(f"{n.patient_id}: {', '.join(n.hidden)}" for n in hidden)
    broken = [n for n in report.notes if n.not_finite]
    if broken:
        heading("With voxels that are NaN or infinite, which nnU-Net refuses")
        listing(f"{n.patient_id}: {m}, {v}" for n in broken for m, v in n.not_finite.items())
