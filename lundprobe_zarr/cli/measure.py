"""`measure`: compare the segmentations of a dataset's patients."""

from __future__ import annotations

import shlex
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, locate
from lundprobe_zarr.cli.sharing import Part, Patients, Scheduler, Workers, parse_share, split_ids
from lundprobe_zarr.cli.status import FAILED, NO_DATASET

if TYPE_CHECKING:
    from collections.abc import Callable

    from lundprobe_zarr.conversion.run.measure import MeasureOptions, MeasureReport
    from lundprobe_zarr.storage.location import Location


def measure(
    dataset: Dataset,
    workers: Workers = None,
    scheduler: Scheduler = None,
    patients: Patients = None,
    part: Part = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Measure patients again that were measured before.")
    ] = False,
    storage_options: StorageOptions = None,
) -> None:
    """Compare the segmentations of network and observers; write the tables agreement, uncertainty.

    Reads the dataset only, not the source. Patients measured before are skipped unless their
    data have changed, so the same command continues an interrupted run. The tables are written
    once all patients are measured. Exit status 1 if a patient failed.
    """
    from lundprobe_zarr.conversion.run.measure import MeasureOptions

    share = parse_share(part)
    how = MeasureOptions(
        workers=workers,
        scheduler=scheduler,
        patients=split_ids(patients or []),
        share=share,
        overwrite=overwrite,
        publish=share is None,
    )
    raise typer.Exit(run_measure(locate(dataset, storage_options), how))


def run_measure(location: Location, how: MeasureOptions) -> int:
    """Measure with progress, print the outcome and return the exit status."""
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.cli.interrupt import interruptible
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.conversion.run.measure import MeasureProgress
    from lundprobe_zarr.conversion.run.measure import measure as measure_patients

    report: MeasureReport | None = None
    with interruptible(lambda: None) as interrupt, ExitStack() as stack:
        step: list[Callable[[str], None]] = []

        def started(number: int) -> None:
            say(f"{count(number, 'patient')} to measure." if number else "Nothing to measure.")
            step.append(stack.enter_context(steps("Measuring", number)))

        def finished(patient_id: str, error: str | None) -> None:
            step[0](f"{patient_id} {'measured' if error is None else f'failed: {error}'}")

        with suppress(KeyboardInterrupt):  # before the first patient or after the last
            report = measure_patients(location, how, MeasureProgress(started, finished))
    if report is None or report.interrupted:
        done = 0 if report is None else len(report.measured) + len(report.skipped)
        say(f"Stopped: {count(done, 'patient')} measured. The same command continues.")
        return interrupt.status
    return _show(report, location)


def _show(report: MeasureReport, location: Location) -> int:
    from lundprobe_zarr.cli.console import failures, say
    from lundprobe_zarr.cli.outcome import show_left_out

    failures(report.failed)
    before = f"{len(report.skipped)} skipped (measured before, unchanged)"
    say(f"{len(report.measured)} measured, {before}, {len(report.failed)} failed.", "bold")
    quoted = shlex.quote(location.url)
    published = report.published
    if published is None:
        say(f"Next, once every share is done: lundprobe-zarr finalise {quoted}")
    elif published.unmeasured:
        show_unmeasured(location, published.unmeasured)
    else:
        query = "SELECT pair, avg(dice) FROM agreement GROUP BY pair"
        say("Wrote the tables agreement and uncertainty.")
        say(f"Next: lundprobe-zarr query {quoted} {shlex.quote(query)}")
    if report.failed:
        return FAILED
    if published is not None and published.left_out:
        manifest = published.manifest
        kind = manifest.precision, manifest.headers_stripped, manifest.levels
        show_left_out(location, published.left_out, *kind)
        return NO_DATASET
    return 0


def show_unmeasured(location: Location, patients: tuple[str, ...]) -> None:
    """Print why the tables of comparisons are not there, and the command that makes them."""
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.errors import Command

    say(
        f"Without the tables agreement and uncertainty: {count(len(patients), 'patient')} "
        f"not measured yet, such as {patients[0]}."
    )
    say(f"  {Command('measure', dataset=location.url)} makes them.")
