"""`repair`: repair a dataset from its source."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.convert import FollowLinks, Scratch, Source
from lundprobe_zarr.cli.place import Dataset, StorageOptions, locate, require_file, write_report
from lundprobe_zarr.cli.sharing import Workers
from lundprobe_zarr.cli.status import FAILED, NO_DATASET
from lundprobe_zarr.errors import Command, UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.repair import Damage, Repair
    from lundprobe_zarr.conversion.source.inventory import Inventory
    from lundprobe_zarr.storage.location import Location


def repair(
    source: Source,
    dataset: Dataset,
    deep: Annotated[bool, typer.Option("--deep", help="Check every byte, not only sizes.")] = False,
    workers: Workers = None,
    follow_links: FollowLinks = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write findings and repairs to this file, as JSON."),
    ] = None,
    scratch: Scratch = None,
    storage_options: StorageOptions = None,
) -> None:
    """Repair a dataset: convert only the patients again whose stores are damaged or missing.

    Validates like `validate`, then converts those patients from the source, with the settings of
    the dataset, and writes tables and manifest again. Intact stores are not changed.
    Exit status 0 if nothing was wrong or everything is repaired; 1 if patients could not be
    converted; 3 if something is still wrong.
    """
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.conversion.source.inventory import take_inventory

    require_file("--report", report)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}", expected="at least 1")
    location = locate(dataset, storage_options)
    location.require_writable()
    inventory = take_inventory(source, follow_links)
    damage = _find(location, deep, workers)
    if not damage.problems:
        _write(report, {"sound": True, "found": [], "converted": [], "changed": [], "left": []})
        how = "every byte read" if deep else "quick look"
        say(f"Nothing to repair in {location.url} ({how}).")
        if not deep:
            again = Command("repair", ("--deep",), location.url)
            say(f"Damage within files takes reading every byte: {again}")
        return
    raise typer.Exit(_mend(inventory, location, damage, workers, scratch, report))


def _find(location: Location, deep: bool, workers: int | None) -> Damage:
    from lundprobe_zarr.cli.console import count, listing, say
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.conversion.repair import find_damage
    from lundprobe_zarr.conversion.tables.publish import store_names

    with steps("Looking", len(store_names(location))) as step:
        damage = find_damage(
            location, deep, workers or 2, lambda patient: step(f"{patient} looked at")
        )
    if damage.problems:
        say(f"Damaged: {count(len(damage.problems), 'problem')}:", "red")
        listing((str(problem) for problem in damage.problems), most=20)
    return damage


def _mend(
    inventory: Inventory,
    location: Location,
    damage: Damage,
    workers: int | None,
    scratch: Path | None,
    report: Path | None,
) -> int:
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cli.interrupt import interruptible
    from lundprobe_zarr.cli.progress import reporter
    from lundprobe_zarr.conversion.repair import repair as repair_stores
    from lundprobe_zarr.conversion.run.run import Options

    how = Options(workers=workers, scratch=scratch)
    heard = reporter(len(damage.patients))
    with interruptible(heard.stopping) as interrupt, heard:
        done = repair_stores(inventory, location, damage, how, heard)
    _write(report, done.to_json())
    if done.interrupted:
        say("Stopped. The same command continues.")
        return interrupt.status
    _show(done, location.url)
    if done.failures:
        return FAILED
    return NO_DATASET if done.left else 0


def _write(report: Path | None, contents: dict[str, object]) -> None:
    write_report(report, json.dumps(contents, indent=2) + "\n")


def _show(done: Repair, url: str) -> None:
    from lundprobe_zarr.cli.console import count, failures, heading, listing, say

    failures({r.patient_id: r.error for r in done.failures})
    if done.changed:
        heading("The source of these patients has changed since; they hold the new data now:")
        listing(done.changed)
    converted = len(done.results) - len(done.failures)
    say(
        f"Converted {count(converted, 'patient')} again; wrote the tables and the manifest again.",
        "bold",
    )
    if done.left:
        heading(f"Still wrong: {count(len(done.left), 'problem')}")
        listing(str(problem) for problem in done.left)
    else:
        say(f"Sound (quick look). Next: lundprobe-zarr validate {shlex.quote(url)} --deep")
