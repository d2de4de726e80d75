"""`demo`: everything once, on synthetic patients, and how to do each step oneself."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lundprobe_zarr.cli.convert import run
from lundprobe_zarr.cli.steps import steps
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

_PATIENTS, _EXTENDED, _SEED = 3, 1, 0
_PROCESSES = 2
_SIZE: Literal["tiny", "small", "full"] = "small"
_PREDICATE = "protocol = 'newAcq' AND NOT missing_PenileBulb"
#: A training patch (z, y, x); clipped to a part of small volumes.
_PATCH = (32, 192, 192)
_NOTICE = "SYNTHETIC.md"


def demo(
    folder: Annotated[
        Path, typer.Argument(help="Folder to write; reused if the demo was run in it before.")
    ] = Path(".demo"),
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes [default: 2; to convert, as many as `convert` takes]."),
    ] = None,
) -> None:
    """Run every step once on synthetic patients.

    Write a phantom, convert it, compare its segmentations, check it, choose patients with SQL, read
    a patch, draw, report on quality, serve. Each step shows the command line and the Python that do
    the same.
    """
    source, dataset = folder / "source", folder / "dataset"
    _require_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_source(source, workers or _PROCESSES)
    _convert(source, dataset, workers)
    _measure(dataset)
    _validate(dataset, workers or _PROCESSES)
    cohort = _query(dataset)
    patient = cohort[0].patient_id
    _read_patch(dataset, patient)
    _draw(dataset, [patient, _extended(dataset)], folder / "pictures")
    _quality(dataset, folder / "qc.html")
    _serve(dataset, folder / "service")
    _what_next(folder)


def _require_ours(folder: Path) -> None:
    from lundprobe_zarr.storage.local import require_folder

    require_folder(folder, str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "source").is_dir():
        raise UsageError(
            f"{folder} holds something other than this demo",
            expected="a folder that is empty, or not there, or of an earlier run",
            remedy="choose another",
        )


def _step(number: int, title: str, command: str | None, python: Sequence[str] = ()) -> None:
    from lundprobe_zarr.cli.console import heading, say

    heading(f"{number}. {title}")
    if command is not None:
        say(f"   $ lundprobe-zarr {command}", "cyan")
    for line in python:
        say(f"   >>> {line}", "cyan")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _write_source(source: Path, workers: int) -> None:
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.phantom import write_phantom

    _step(
        1,
        "A synthetic LUND-PROBE: no patient's data, but the same in every detail",
        f"phantom {_quoted(source)} --patients {_PATIENTS} --extended {_EXTENDED} --size {_SIZE}",
    )
    # Written under another name first: an interrupted demo leaves no incomplete tree.
    draft = source.with_name(f"{source.name}.partial")
    if draft.exists():
        shutil.rmtree(draft)
    if source.is_dir():
        say(f"   There from an earlier run: {source}")
        return
    with steps("   Writing", _PATIENTS + _EXTENDED) as step:
        write_phantom(
            draft,
            patients=_PATIENTS,
            extended=_EXTENDED,
            size=_SIZE,
            seed=_SEED,
            workers=workers,
            progress=step,
        )
    draft.rename(source)
    say(f"   Wrote {_PATIENTS + _EXTENDED} patients to {source}")


def _convert(source: Path, dataset: Path, workers: int | None) -> None:
    from lundprobe_zarr.conversion.run.run import Options
    from lundprobe_zarr.conversion.source.inventory import take_inventory
    from lundprobe_zarr.storage.location import Location

    option = f" --workers {workers}" if workers else ""
    _step(2, "Convert it", f"convert {_quoted(source)} {_quoted(dataset)}{option}")
    inventory = take_inventory(source, follow_links=False)
    status = run(inventory, Location(dataset), Options(workers=workers))
    if status:
        raise typer.Exit(status)


def _measure(dataset: Path) -> None:
    from lundprobe_zarr.cli.measure import run_measure
    from lundprobe_zarr.conversion.run.measure import MeasureOptions
    from lundprobe_zarr.storage.location import Location

    _step(
        3,
        "Compare what networks and observers drew",
        f"measure {_quoted(dataset)}",
        (f'lp.agreement(lp.open_cohort("{dataset}"), "CTVT_427")',),
    )
    if status := run_measure(Location(dataset), MeasureOptions()):
        raise typer.Exit(status)


def _validate(dataset: Path, workers: int) -> None:
    from lundprobe_zarr.cli.validate import validate

    _step(4, "Check every byte of it", f"validate {_quoted(dataset)} --deep")
    validate(str(dataset), deep=True, workers=workers)


def _query(dataset: Path) -> Cohort:
    from lundprobe_zarr.cli.query import query
    from lundprobe_zarr.cohort import open_cohort

    _step(
        5,
        "Choose patients with SQL",
        f'query {_quoted(dataset)} "{_PREDICATE}"',
        (
            "import lundprobe_zarr as lp",
            f'cohort = lp.open_cohort("{dataset}")',
            f'chosen = cohort.where("{_PREDICATE}")',
        ),
    )
    query(str(dataset), _PREDICATE)
    return open_cohort(dataset).where(_PREDICATE)


def _extended(dataset: Path) -> str:
    from lundprobe_zarr.cohort import open_cohort

    return open_cohort(dataset).where("part = 'extended'")[0].patient_id


def _read_patch(dataset: Path, patient: str) -> None:
    from lundprobe_zarr.cli.console import duration, say, size
    from lundprobe_zarr.cli.patch import read_patch

    read = read_patch(dataset / "patients" / f"{patient}.zarr", _PATCH)
    z, y, x = (f"slice({s.start}, {s.stop})" for s in read.box)
    _step(
        6,
        "Stream a patch of the T2w image around the target: just the chunks it touches",
        None,
        (
            "import xarray as xr",
            f'mri = xr.open_zarr("{read.store}", group="mri")',
            f'mri.image.sel(modality="T2w").isel(z={z}, y={y}, x={x}).values',
        ),
    )
    shape, whole = (" × ".join(map(str, n)) for n in (read.shape, read.volume_shape))
    say(f"   Read {shape} of {whole} voxels in {duration(read.seconds)}:")
    say(f"   {read.chunks} of {read.volume_chunks} chunks, {size(read.bytes)}.")
    say(f"   The whole volume is {size(read.volume_bytes)}, and a .nii.gz has to be read whole.")


def _draw(dataset: Path, patients: Sequence[str], folder: Path) -> None:
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.figures.preview import save_preview
    from lundprobe_zarr.storage.location import Location

    chosen = list(dict.fromkeys(patients))
    picture = folder / f"{chosen[0]}.png"
    _step(7, "Draw", f"preview {_quoted(dataset)} {chosen[0]} {_quoted(picture)}")
    folder.mkdir(exist_ok=True)
    for patient in chosen:
        save_preview(Location(dataset), patient, folder / f"{patient}.png")
        say(f"   {folder / f'{patient}.png'}")


def _quality(dataset: Path, page: Path) -> None:
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.quality.check import qc

    _step(
        8,
        "Ask who is odd: rules in SQL, and a page with pictures",
        f"qc {_quoted(dataset)} --html {_quoted(page)}",
        (f'report = lp.qc(lp.open_cohort("{dataset}"))', f'report.save_html("{page}")'),
    )
    report = qc(open_cohort(dataset))
    report.save_html(page)
    kept = sum(o.status == "passed" for o in report.outcomes)
    say(f"   {kept} of {count(len(report.outcomes), 'rule')} kept: {page}")


def _serve(dataset: Path, folder: Path) -> None:
    from lundprobe_zarr.cli.console import say
    from lundprobe_zarr.cli.try_service import NAME, try_service
    from lundprobe_zarr.errors import MissingPackageError
    from lundprobe_zarr.service.packages import require_packages

    _step(
        9,
        "Serve it, to those who have the token and to the tools they have",
        f"serve {_quoted(dataset)}",
        (
            "from datasets import load_dataset  # with HF_ENDPOINT and HF_TOKEN as serve says",
            f'load_dataset("{NAME}", "patients", split="base", streaming=True)',
        ),
    )
    try:
        require_packages()
    except MissingPackageError as error:
        say(f"   Left out: {error}")
        return
    try_service(dataset, folder)


def _what_next(folder: Path) -> None:
    from lundprobe_zarr.cli.console import heading, listing

    heading("Where things are")
    listing(
        (
            f"{folder / 'source'}    the synthetic source tree",
            f"{folder / 'dataset'}   the dataset; its README.md says what is in it",
            f"{folder / 'pictures'}  the pictures",
            f"{folder / 'qc.html'}   the quality report; open it in a browser",
            f"{folder / 'service'}   what the service wrote: its audit log, its index",
        )
    )
    heading("With your own copy of LUND-PROBE")
    listing(
        (
            "lundprobe-zarr convert /path/to/lund-probe my-dataset --dry-run",
            "lundprobe-zarr convert /path/to/lund-probe my-dataset",
            "lundprobe-zarr info my-dataset",
            "lundprobe-zarr serve my-dataset",
        )
    )
