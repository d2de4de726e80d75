"""`export-nnunet`: patients as a raw dataset of nnU-Net."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
from lundprobe_zarr.cli.status import FAILED
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lundprobe_zarr.cohort import Cohort, Splits
    from lundprobe_zarr.exchange.nnunet import NnUNetReport, Told


class Missing(StrEnum):
    """What becomes of patients who lack a structure."""

    skip = "skip"
    ignore = "ignore"


class Grid(StrEnum):
    """Grid of channels and labels."""

    mri = "mri"
    sct = "sct"


def export_nnunet(
    dataset: Dataset,
    out: Annotated[Path, typer.Argument(help="nnU-Net's raw folder, $nnUNet_raw.")],
    dataset_id: Annotated[int, typer.Option(help="Dataset id of nnU-Net, 1 to 999.")],
    labels: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Structures, in the order of labels.")
    ],
    name: Annotated[str, typer.Option(help="Name of nnU-Net's dataset.")] = "LUNDPROBE",
    channels: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="T2w, sCT or both. nnU-Net is told T2w and CT, by which it normalises; "
            "sCT=zscore tells it another name.",
        ),
    ] = "T2w",
    regions: Annotated[
        bool,
        typer.Option("--regions", help="Keep overlaps: structures are regions of several labels."),
    ] = False,
    priority: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Structures that win shared voxels, first to last [default: canonical order].",
        ),
    ] = None,
    missing: Annotated[
        Missing,
        typer.Option(
            help="Leave out patients who lack a structure, or use nnU-Net's ignore label."
        ),
    ] = Missing.skip,
    grid: Annotated[Grid, typer.Option(help="T2w is on mri alone.")] = Grid.mri,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Patients for whom a predicate holds.")
    ] = None,
    fold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Saved splits, or a saved cohort: patients, folds, test."
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(help="Folds of splits_final.json without saved splits.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Seed of these folds.")] = 0,
    test: Annotated[
        str | None,
        typer.Option(metavar="PART|SQL", help="Patients for imagesTs, such as extended."),
    ] = None,
    level: Annotated[int, typer.Option(help="Level of gzip, 1 to 9.")] = 3,
    workers: Annotated[
        int | None, typer.Option(help="Patients at a time [default: one a core].")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export made with other settings.")
    ] = False,
    storage_options: StorageOptions = None,
) -> None:
    """Write patients as a raw dataset of nnU-Net version 2.

    Voxels and geometry are those of the dataset. Patients who lack a structure are left out or get
    the ignore label, never background. The same command continues an export that was broken off.
    lundprobe-export.json says who is there, who is not and why, and which structures overlap.
    Exit status 1 if a patient could not be read.
    """
    from lundprobe_zarr.cli.interrupt import interruptible
    from lundprobe_zarr.exchange.nnunet import export_nnunet as export

    cohort, splits = _cohort(dataset, where, fold, storage_options)
    report: NnUNetReport | None = None
    with (
        interruptible(lambda: None) as interrupt,
        ExitStack() as stack,
        suppress(KeyboardInterrupt),
    ):
        report = export(
            cohort,
            out,
            dataset_id,
            name,
            _names("--labels", labels),
            channels=_names("--channels", channels),
            regions=regions,
            priority=None if priority is None else _names("--priority", priority),
            missing=missing.value,
            grid=grid.value,
            test=None if test is None else _test(cohort, test),
            splits=splits,
            folds=folds,
            seed=seed,
            level=level,
            workers=workers,
            overwrite=overwrite,
            told=_told(stack),
        )
    if report is None:
        from lundprobe_zarr.cli.console import say

        say("Stopped. What is written stays; the same command continues.")
        raise typer.Exit(interrupt.status)
    raise typer.Exit(_show(report, out))


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} {text!r}: no name in it", expected="NAME[,NAME...]")
    return names


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


def _told(stack: ExitStack) -> Told:
    """Return what shows progress: a bar or lines for each of the two rounds."""
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.cli.phantom import steps
    from lundprobe_zarr.exchange.nnunet import Told

    step: list[Callable[[str], None]] = []

    def started(what: str, patients: int) -> None:
        stack.close()
        step.clear()
        if what == "Looking at":
            return
        say(f"{count(patients, 'patient')} to write." if patients else "Nothing to write.")
        step.append(stack.enter_context(steps(what, patients)))

    def finished(patient_id: str, error: str | None) -> None:
        for tell in step:
            tell(f"{patient_id} {'written' if error is None else f'failed: {error}'}")

    return Told(started, finished)


def _show(report: NnUNetReport, out: Path) -> int:
    from lundprobe_zarr.cli.console import count, heading, listing, say, table
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
    if report.failed:
        heading(f"Failed: {count(len(report.failed), 'patient')}")
        listing((f"{i}: {error}" for i, error in report.failed.items()), most=100)
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
        say("Next: mend what failed and run the same command; it writes only what is missing.")
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
