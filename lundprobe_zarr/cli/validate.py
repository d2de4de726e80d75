"""`validate`: is a dataset whole and sound?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, locate, require_file, write_report
from lundprobe_zarr.cli.status import NO_DATASET
from lundprobe_zarr.errors import DatasetError

if TYPE_CHECKING:
    from lundprobe_zarr.integrity.validate import Problem


def validate(
    dataset: Dataset,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Read every byte: checksums, hashes, and the NIfTI files."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Stores checked at a time.")] = 2,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the findings to this file, as JSON.")
    ] = None,
    storage_options: StorageOptions = None,
) -> None:
    """Check that a dataset is complete and undamaged.

    The quick check compares metadata, tables and the sizes of objects. The deep check decodes every
    chunk, hashes every shard and rebuilds every NIfTI file that was stored exactly.
    Exit status 3 if anything is wrong.
    """
    from lundprobe_zarr.cli.console import count, listing, say
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.integrity.validate import Problem, Validation
    from lundprobe_zarr.integrity.validate import validate as look

    require_file("--report", report)
    location = locate(dataset, storage_options)
    try:
        manifest = open_manifest(location)
        total = sum(manifest.patients.values())
        with steps("Validating", total) as step:
            found = look(location, deep, workers, lambda patient: step(f"{patient} looked at"))
    except DatasetError as error:  # the report has to say so too
        nothing = Validation(deep, 0, 0, (Problem("dataset", str(error)),))
        write_report(report, nothing.to_json())
        raise
    write_report(report, found.to_json())
    seen = f"{count(found.stores, 'store')}, {count(found.volumes, 'volume')}"
    if found.absent is not None:
        say(f"Incomplete: {found.absent}.", "yellow")
    if not found.problems:
        how = "every byte read" if deep else "quick look; --deep reads every byte"
        say(f"Sound: {seen} ({how}).")
        return
    say(f"Damaged: {count(len(found.problems), 'problem')} in {seen}:", "red")
    listing((str(problem) for problem in found.problems), most=50)
    kind = manifest.precision, manifest.headers_stripped, manifest.levels
    _show_remedy(location.url, found.problems, deep, kind)
    raise typer.Exit(NO_DATASET)


def _show_remedy(
    url: str, problems: Sequence[Problem], deep: bool, kind: tuple[str, bool, int]
) -> None:
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.stores.place import convert_again

    damaged = dict.fromkeys(p.patient_id for p in problems if p.patient_id is not None)
    if damaged:
        say("Remedy: convert these patients again, or copy their stores again:")
        say(f"  {convert_again(damaged, url, *kind)}")
    if any(p.patient_id is None for p in problems):
        say("Remedy for the tables: write them again:")
        say(f"  lundprobe-zarr finalise {shlex.quote(url)} --rebuild")
    say("Or repair everything from the source:")
    say(f"  lundprobe-zarr repair SOURCE {shlex.quote(url)}{' --deep' if deep else ''}")
