"""`copy`: a finished dataset from anywhere to a folder or bucket."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.convert import AllowPublic
from lundprobe_zarr.cli.place import StorageOptions, locate, require_file, write_report
from lundprobe_zarr.cli.status import FAILED
from lundprobe_zarr.storage.urls import WEB, protocol_of_url

if TYPE_CHECKING:
    from lundprobe_zarr.integrity.copy import CopiedStore, CopyReport


SourceOptions = Annotated[
    str | None,
    typer.Option(
        metavar="JSON|@FILE",
        help="The same for SRC [default: for a bucket, those of --storage-options if DEST is a "
        "path].",
    ),
]


def copy(
    source: Annotated[str, typer.Argument(help="Path or URL of a dataset.", metavar="SRC")],
    destination: Annotated[
        str, typer.Argument(help="Folder, or URL of a bucket's folder.", metavar="DEST")
    ],
    workers: Annotated[int, typer.Option(min=1, help="Objects sent at a time.")] = 8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another dataset that is there.")
    ] = False,
    reverify: Annotated[
        bool, typer.Option("--reverify", help="Compare every byte of what is there already.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write the outcome here, as JSON."),
    ] = None,
    allow_public: AllowPublic = False,
    storage_options: StorageOptions = None,
    source_options: SourceOptions = None,
) -> None:
    """Copy a dataset to a folder or bucket, and check that it arrived.

    The same command continues an interrupted copy: objects that are there are not sent again. The
    manifest is written last, so that no reader sees an incomplete dataset. Credentials are found
    where the provider's own tools look for them.
    Exit status 1 if some stores could not be copied; the others are copied.
    """
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cli.interrupt import interruptible
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.integrity.copy import copy_dataset

    require_file("--report", report)
    own = _source_options(source, destination, source_options, storage_options)
    start, end = locate(source, own, "--source-options"), locate(destination, storage_options)
    total = sum(open_manifest(start).patients.values())
    stopping = "Stopping: waiting for the objects on their way …"
    with interruptible(lambda: typer.echo(stopping, err=True)) as interrupt:
        try:
            with steps("Copying", total) as step:
                done = copy_dataset(
                    start,
                    end,
                    workers,
                    overwrite,
                    reverify,
                    lambda s: step(_verdict(s)),
                    allow_public,
                )
        except KeyboardInterrupt:
            say("The same command continues where this one stopped.")
            raise typer.Exit(interrupt.status) from None
    write_report(report, done.to_json())
    _show(done, end.url)
    if done.failures:
        raise typer.Exit(FAILED)


def _source_options(
    source: str, destination: str, given: str | None, storage_options: str | None
) -> str | None:
    """Options of SRC: its own, or, for a bucket, those of a DEST that is a path and needs none."""
    start, end = protocol_of_url(source), protocol_of_url(destination)
    takes_them = start not in ("file", *WEB) and end == "file"
    return storage_options if given is None and takes_them else given


def _verdict(store: CopiedStore) -> str:
    from lundprobe_zarr.cli.console import count, size

    if store.error is not None:
        return f"{store.patient_id} failed: {store.error}"
    if not store.sent:
        return f"{store.patient_id} was there"
    return f"{store.patient_id} copied ({count(store.sent, 'object')}, {size(store.sent_bytes)})"


def _show(report: CopyReport, url: str) -> None:
    from lundprobe_zarr.cli.console import count, failures, say, size

    if report.failures:
        failures({s.patient_id: s.error for s in report.failures}, "store")
        say("No manifest was written. Fix the cause and run the same command.")
        return
    stores = count(len(report.stores), "store")
    say(f"{stores} in {url}; sent {count(report.sent, 'object')}, {size(report.sent_bytes)}.")
    say(f"Next: lundprobe-zarr validate {shlex.quote(url)}")
