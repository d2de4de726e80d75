"""What a conversion came to, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lundprobe_zarr.cli.console import count, duration, failures, heading, listing, say
from lundprobe_zarr.cli.place import shown
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.stores.metadata import HOLDS_ANOTHER
from lundprobe_zarr.stores.place import convert_again
from lundprobe_zarr.vocabulary.grouping import grouped

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.run.run import Report
    from lundprobe_zarr.storage.location import Location


def show_outcome(
    report: Report, destination: Location, published: bool, measures: bool = False
) -> None:
    """Print the summary of a run that went to its end; `measures`: its segmentations come next."""
    failures({r.patient_id: r.error for r in report.failures})
    _show_findings(report)
    kind = report.precision, report.headers_stripped, report.levels
    show_left_out(destination, report.left_out, *kind)
    say()
    say(f"{_counts(report)} in {duration(report.seconds)}.", "bold")
    say(f"Dataset: {shown(destination)}")
    for line in () if measures and not report.failures else _next(report, destination, published):
        say(line)


def _counts(report: Report) -> str:
    skipped = f"{report.count('skipped')} skipped (converted before, unchanged)"
    return f"{report.count('converted')} converted, {skipped}, {report.count('failed')} failed"


def _next(report: Report, destination: Location, published: bool) -> Iterator[str]:
    quoted = shlex.quote(destination.url)
    if report.failures:
        yield "Next: fix the cause and run the same command; it converts only what is missing."
    if report.unpublished is not None:
        yield f"The tables were not written: {report.unpublished}"
    elif not published:
        yield f"Next, once every share is done: lundprobe-zarr finalise {quoted}"
    else:
        yield f"Next: lundprobe-zarr validate {quoted}"
        yield f"      lundprobe-zarr info {quoted}"
        if report.unmeasured:
            patients = count(len(report.unmeasured), "patient")
            yield f"      lundprobe-zarr measure {quoted}  # segmentations of {patients}, compared"


def show_left_out(
    dataset: Location, left_out: Sequence[str], precision: str, stripped: bool, levels: int
) -> None:
    """Print which stores are not in the tables, and what to do about them."""
    if not left_out:
        return
    say(f"Left out of the tables: {count(len(left_out), 'store')}", "red")
    listing(left_out)
    named = {line.partition(".zarr: ")[0]: line for line in left_out}
    say(f"Convert these again: {convert_again(named, dataset.url, precision, stripped, levels)}")
    for patient_id in (i for i, line in named.items() if HOLDS_ANOTHER in line):
        place = dataset.path(store_path(patient_id))
        say(f"If there is no such patient, move the store away: {place}")


def _show_findings(report: Report) -> None:
    of_patients = [f"{r.patient_id}: {f}" for r in report.results for f in r.findings]
    lines = [*report.findings, *of_patients]
    if lines:
        heading(f"Recoverable anomalies, converted and reported: {count(len(lines), 'finding')}")
        listing(short := grouped(lines))
        if len(short) < len(lines):
            say("  The full list: convert with --report FILE.")
    if report.skipped_folders:
        heading(f"Skipped, not converted: {count(len(report.skipped_folders), 'entry')}")
        listing(report.skipped_folders)
    if report.not_in_source:
        heading(not_in_source(report.not_in_source))
        listing(report.not_in_source)


def not_in_source(patients: Sequence[str]) -> str:
    """What becomes of patients in the dataset whom the source does not have."""
    are = "is" if len(patients) == 1 else "are"
    stay = "it stays as it is" if len(patients) == 1 else "they stay as they are"
    return f"{count(len(patients), 'patient')} in the dataset {are} not in this source; {stay}:"


def show_interrupted(done: int, known: int, destination: Location) -> None:
    """Print what is done after an interrupt, and how to continue."""
    say()
    say(f"Stopped: {done} of {count(known, 'patient')} done and safe in {shown(destination)}.")
    say("The same command continues where this one stopped.")
