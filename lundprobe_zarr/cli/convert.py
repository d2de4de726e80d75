"""`convert` and `finalise`: from a source tree to a dataset."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, locate, require_file
from lundprobe_zarr.cli.sharing import Part, Patients, Scheduler, Workers, parse_share, split_ids
from lundprobe_zarr.cli.status import FAILED, NO_DATASET
from lundprobe_zarr.errors import SourceNotFoundError, UsageError
from lundprobe_zarr.vocabulary.names import PATIENT_ID_FORM

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.run.run import Options, Report
    from lundprobe_zarr.conversion.source.inventory import Inventory
    from lundprobe_zarr.schema.manifest import Manifest
    from lundprobe_zarr.storage.location import Location


class Precision(StrEnum):
    """What may be rounded."""

    lossless = "lossless"
    standard = "standard"
    compact = "compact"


Source = Annotated[Path, typer.Argument(help="The unpacked LUND-PROBE archive.", metavar="SRC")]
Destination = Annotated[
    str, typer.Argument(help="Folder of the dataset, or URL of one in a bucket.", metavar="DEST")
]
HowPrecise = Annotated[
    Precision,
    typer.Option(
        help="lossless: every value bit for bit. standard: float64 that float32 cannot hold is "
        "rounded to float32. compact: for training, sCT to whole HU, dose within 1 mGy."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Convert patients again that were converted before.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links that lead outside SRC.")
]
StripHeaders = Annotated[
    bool,
    typer.Option(
        "--strip-headers",
        help="Leave out free text of NIfTI headers (descrip, aux_file, db_name, intent_name, "
        "data_type), extensions and bytes after the voxels; `export` cannot restore them.",
    ),
]
Levels = Annotated[
    int,
    typer.Option(
        help="Coarser levels to add for viewers of OME-Zarr, each halved in plane; our readers "
        "ignore them. 2 add about a quarter to the size, half to the time.",
        show_default=False,
    ),
]
Checksum = Annotated[
    bool,
    typer.Option(
        "--checksum",
        help="Compare source files by their hashes, not by size and time; reads all of them.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what the source holds and what would be done; write nothing."
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Write the outcome of every patient here, as JSON.")
]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="Then compare segmentations, as `lundprobe-zarr measure` does."),
]
AllowPublic = Annotated[
    bool,
    typer.Option(
        "--allow-public",
        help="Write to a bucket although anyone can read it without credentials, which is refused "
        "otherwise: LUND-PROBE is under controlled access.",
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(
        help="For a bucket: where a patient's store is written, one a worker, before it is sent, "
        "up to 1 GB each [default: the system's folder for temporary files]."
    ),
]


def convert(
    source: Source,
    destination: Destination,
    workers: Workers = None,
    scheduler: Scheduler = None,
    precision: HowPrecise = Precision.standard,
    patients: Patients = None,
    part: Part = None,
    overwrite: Overwrite = False,
    follow_links: FollowLinks = False,
    strip_headers: StripHeaders = False,
    levels: Levels = 0,
    checksum: Checksum = False,
    dry_run: DryRun = False,
    report: ReportFile = None,
    scratch: Scratch = None,
    allow_public: AllowPublic = False,
    measure: Measure = False,
    storage_options: StorageOptions = None,
) -> None:
    """Convert a copy of LUND-PROBE into a dataset, on disk or in a bucket (s3://, gs://, az://).

    Patients converted before are skipped unless their source files have changed in size or time.
    So the same command continues an interrupted run. A patient that fails does not stop the
    others. Exit status 1 if any failed, 3 if a store cannot be read.
    For a bucket, each patient is written and verified in a scratch folder, then sent, with its
    root metadata last: `lundprobe-zarr convert SOURCE s3://bucket/lund-probe --scratch /fast/disk`.
    """
    from lundprobe_zarr.conversion.run.run import Options

    if dry_run and report is not None:
        raise UsageError(
            f"--dry-run writes nothing, so no --report {report}", remedy="leave out either"
        )
    require_file("--report", report)
    share = parse_share(part)
    dataset = locate(destination, storage_options)
    wanted = split_ids(patients or [])
    inventory = _inventory(source, follow_links, wanted, share, levels, strip_headers)
    how = Options(
        workers=workers,
        scheduler=scheduler,
        precision=precision.value,
        overwrite=overwrite,
        publish=share is None,
        scratch=scratch,
        allow_public=allow_public,
        checksum=checksum,
    )
    if dry_run:
        from lundprobe_zarr.cli.plan import show_plan

        show_plan(inventory, dataset, how)
        return
    status = run(inventory, dataset, how, report, measure)
    if measure and status in (0, FAILED):
        status = _measure(inventory, dataset, how) or status
    raise typer.Exit(status)


def _measure(inventory: Inventory, dataset: Location, how: Options) -> int:
    """Measure the patients of a conversion; return the exit status."""
    from lundprobe_zarr.cli.measure import run_measure
    from lundprobe_zarr.conversion.run.measure import MeasureOptions, measurable

    there = set(measurable(dataset))
    patients = [p.patient_id for p in inventory.patients if p.patient_id in there]
    if not patients:
        return 0
    of_them = MeasureOptions(
        workers=how.workers, scheduler=how.scheduler, patients=patients, publish=how.publish
    )
    return run_measure(dataset, of_them)


def _inventory(
    source: Path,
    follow_links: bool,
    patients: list[str],
    share: tuple[int, int] | None,
    levels: int,
    strip_headers: bool,
) -> Inventory:
    """Return the files to convert. Raises `SourceNotFoundError` for a tree without patients."""
    from lundprobe_zarr.conversion.source.inventory import (
        select,
        take_inventory,
        with_coarser_levels,
        without_header_text,
    )

    inventory = take_inventory(source, follow_links)
    if not inventory.patients:
        raise SourceNotFoundError(
            "no patient in basePart/ or extendedPart/",
            where=inventory.root,
            expected=f"folders named {PATIENT_ID_FORM}",
            remedy="check that the archive was unpacked",
        )
    inventory = select(inventory, patients, share)
    if levels:
        inventory = with_coarser_levels(inventory, levels)
    return without_header_text(inventory) if strip_headers else inventory


def run(
    inventory: Inventory,
    destination: Location,
    how: Options,
    report_file: Path | None = None,
    measures: bool = False,
) -> int:
    """Convert with progress, print the outcome and return the exit status.

    `measures` is whether measuring follows, which says what to do next.
    """
    from lundprobe_zarr.cli.interrupt import interruptible
    from lundprobe_zarr.cli.outcome import show_interrupted, show_outcome
    from lundprobe_zarr.cli.progress import reporter
    from lundprobe_zarr.conversion.run.run import convert as convert_patients
    from lundprobe_zarr.conversion.run.run import current_patients

    report: Report | None = None
    heard = reporter(len(inventory.patients))
    with interruptible(heard.stopping) as interrupt:
        try:
            with heard:
                report = convert_patients(inventory, destination, how, heard)
        except KeyboardInterrupt:
            pass  # before the first patient or after the last; what is done is done
    if report is not None and report_file is not None:
        report.write(report_file)
    if report is None or report.interrupted:
        # Counted on disk: a patient may have come to its end while workers were stopping.
        done = current_patients(destination, inventory, how)
        show_interrupted(len(done), len(inventory.patients), destination)
        return interrupt.status
    show_outcome(report, destination, how.publish, measures)
    if report.failures:
        return FAILED
    return NO_DATASET if report.left_out else 0


def finalise(
    dataset: Dataset,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Measure every voxel again; upgrade an older schema.")
    ] = False,
    storage_options: StorageOptions = None,
) -> Any:
    """Write tables, manifest and card from the patients' stores.

    `convert` does so itself, except with `--part`: run this when all shares are done. It may be run
    at any time, and restores lost tables.
    """
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cli.outcome import show_left_out
    from lundprobe_zarr.conversion.tables.publish import finalise as publish
    from lundprobe_zarr.errors import Command
    from lundprobe_zarr.stores.place import kind_options

    location = locate(dataset, storage_options)
    published = publish(location, rebuild)
    if published.upgraded:
        now = published.manifest.schema_version
        say(f"Upgraded {len(published.upgraded)} stores to schema version {now}.")
    counts = " and ".join(f"{n} {part}" for part, n in published.manifest.patients.items())
    say(f"Wrote the tables, manifest and card of {counts} patients in {location.url}.")
    if published.absent is not None:
        say(f"Incomplete: {published.absent}.", "yellow")
        how = kind_options(*_kind(published.manifest))
        command = Command("convert", how, location.url)
        say(f"  {command} converts the missing patients.")
    if published.unmeasured:
        from lundprobe_zarr.cli.measure import show_unmeasured

        show_unmeasured(location, published.unmeasured)
    if published.left_out:
        show_left_out(location, published.left_out, *_kind(published.manifest))
        raise typer.Exit(NO_DATASET)
    say(f"Next: lundprobe-zarr info {shlex.quote(location.url)}")


def _kind(manifest: Manifest) -> tuple[str, bool, int]:
    return manifest.precision, manifest.headers_stripped, manifest.levels
