"""`phantom`: a synthetic source tree to try everything on."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Size(StrEnum):
    """Size of the MRI matrix."""

    tiny = "tiny"
    small = "small"
    full = "full"


def phantom(
    destination: Annotated[
        Path, typer.Argument(help="Folder to write; empty or new.", metavar="DEST")
    ],
    patients: Annotated[int, typer.Option(help="Patients of the base part.")] = 3,
    extended: Annotated[int, typer.Option(help="Patients of the extended part.")] = 1,
    size: Annotated[
        Size, typer.Option(help="MRI of about 56×48×14, 256×240×32 or 1024×1024×88 voxels.")
    ] = Size.tiny,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same tree.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Write a synthetic LUND-PROBE source tree, without data of real patients."""
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.cli.steps import steps
    from lundprobe_zarr.phantom import write_phantom
    from lundprobe_zarr.storage.local import named

    with steps("Writing", patients + extended) as step, named(destination):
        write_phantom(
            destination,
            patients=patients,
            extended=extended,
            size=size.value,
            seed=seed,
            workers=workers,
            progress=step,
        )
    say(f"Wrote {count(patients + extended, 'synthetic patient')} to {destination.resolve()}.")
    say(f"Next: lundprobe-zarr convert {destination} DATASET")
