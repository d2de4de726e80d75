"""`dvh`: dose-volume histograms of patients, as metrics, curves, a plan check or a picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.choosing import Structures, Where, cohort_where, names
from lundprobe_zarr.cli.place import Dataset, StorageOptions
from lundprobe_zarr.cli.query import (
    Format,
    FormOption,
    OutputFile,
    arrow_table,
    output_form,
    write_rows,
)
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import xarray as xr

    from lundprobe_zarr.cohort import Cohort, Patient
    from lundprobe_zarr.cohort.dose_volume import Wanted

_METRICS = "D98%,D50%,D2%,mean,V95%"
#: Columns left out of a table for people, and those left out of it where they are empty.
_NOT_SHOWN = ("part", "protocol", "grid", "citation")
_OFTEN_EMPTY = ("fold", "step", "observer", "reason")


class Grid(StrEnum):
    """Grid of masks and dose."""

    sct = "sct"
    mri = "mri"


class Method(StrEnum):
    """Where doses come from."""

    voxels = "voxels"
    table = "table"


class Outside(StrEnum):
    """What becomes of tissue outside the planning dose grid."""

    leave_out = "leave out"
    zero = "zero"


class Volume(StrEnum):
    """Unit of volumes in a picture."""

    percent = "%"
    cc = "cc"


PatientArgument = Annotated[
    str | None, typer.Argument(help="A patient's id; all patients without.")
]
Sources = Annotated[
    str,
    typer.Option(
        metavar="NAME[,NAME...]", help="clinical, nnunet, nnunet_fold, observer; see --grid."
    ),
]
GridOption = Annotated[Grid, typer.Option(help="Only clinical masks are on sct.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME...]",
        help="Dx%, Dxcc, VxGy[%|cc], Vx%[%|cc], mean, min, max, HI, CI, CI[x%] "
        f"[default: {_METRICS}].",
    ),
]
Curves = Annotated[
    bool, typer.Option("--curves", help="Give the curves: a row a segmentation and dose.")
]
Constraints = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Check plans: a set such as icru, or a JSON file."),
]
MethodOption = Annotated[
    Method, typer.Option(help="Exact from voxels, or to 0.05 Gy from the table: for many.")
]
StepGy = Annotated[
    float | None, typer.Option(help="Step of curves, Gy [default: 0.01; of the table 0.1].")
]
OutsideOption = Annotated[
    Outside, typer.Option(help="Tissue outside the planning dose grid: left out, or 0 Gy.")
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw the curves into this file.")
]
By = Annotated[
    str | None,
    typer.Option(help="Compare in the picture: protocol, part, source, step, observer, fold."),
]
VolumeOption = Annotated[Volume, typer.Option(help="Volumes in the picture.")]


def dvh(
    dataset: Dataset,
    patient: PatientArgument = None,
    where: Where = None,
    structures: Structures = None,
    sources: Sources = "clinical",
    grid: GridOption = Grid.sct,
    metrics: Metrics = None,
    curves: Curves = False,
    constraints: Constraints = None,
    method: MethodOption = Method.voxels,
    step_gy: StepGy = None,
    outside: OutsideOption = Outside.leave_out,
    form: FormOption = None,
    output: OutputFile = None,
    plot: Plot = None,
    by: By = None,
    volume: VolumeOption = Volume.percent,
    storage_options: StorageOptions = None,
) -> None:
    """Compute dose-volume metrics, curves, plan checks and pictures of patients.

    A row is a segmentation with its metrics, of one patient or of many. With --curves a row is a
    dose of a curve, with --constraints a patient and constraint. --plot without these writes only
    the picture. Volumes are of the part inside the planning dose grid, covered_pct of the whole.
    """
    from lundprobe_zarr.cli.console import count
    from lundprobe_zarr.cohort.dose_volume import wanted

    if sum((metrics is not None, curves, constraints is not None)) > 1:
        raise UsageError("several of --metrics, --curves and --constraints", expected="one of them")
    only_picture = plot is not None and not (metrics or curves or constraints or form or output)
    _require_plot(plot, by)
    kind = None if only_picture else output_form(form, output)
    want = wanted(
        names("--structures", structures),
        names("--sources", sources),
        grid.value,
        method.value,
        outside.value,
    )
    result = _result(metrics or _METRICS, curves, step_gy, constraints)
    patients = _patients(dataset, patient, where, storage_options)
    if plot is not None:
        _draw(patients, want, step_gy, plot, by, volume.value)
    if kind is not None:
        with _progress(patients, want) as done:
            found = result(patients, want, done)
        table = _shown(found) if kind is Format.table else arrow_table(found)
        write_rows(table, kind, output, count(table.num_rows, "row"))


def _require_plot(plot: Path | None, by: str | None) -> None:
    from lundprobe_zarr.figures.notebook import require_png

    if plot is not None:
        require_png(plot)
    elif by is not None:
        raise UsageError(f"--by {by} without --plot", expected="--plot and the name of a PNG file")


def _patients(
    dataset: str, patient: str | None, where: str | None, storage_options: str | None
) -> Patient | Cohort:
    if patient is not None and where is not None:
        raise UsageError("a patient and --where", expected="one of them")
    cohort = cohort_where(dataset, where, storage_options)
    return cohort if patient is None else cohort[patient]


def _result(
    metrics: str, curves: bool, step_gy: float | None, constraints: str | None
) -> Callable[[Patient | Cohort, Wanted, Callable[[str], None]], pd.DataFrame]:
    """Return what makes the rows. Metrics and constraints are parsed now, before data are read."""
    from lundprobe_zarr.labelled import dvh, plan_check
    from lundprobe_zarr.measures.metrics import parse_metrics

    if constraints is not None:
        checked = plan_check.read_constraints(constraints)
        return lambda patients, want, done: plan_check.check(patients, checked, want, done)
    if curves:
        return lambda patients, want, done: _long(dvh.curves(patients, want, step_gy, done))
    parsed = parse_metrics(names("--metrics", metrics))
    return lambda patients, want, done: dvh.metric_table(patients, want, parsed, done)


def _long(curves: xr.Dataset) -> pd.DataFrame:
    """Return a row a segmentation and dose."""
    names = [n for n in curves.coords if n != "dose"]
    frame = curves.reset_index(["structure", "source", "patient_id"]).to_dataframe().reset_index()
    kinds = dict.fromkeys(("fold", "step"), "Int64")
    frame["observer"] = frame["observer"].replace("", None)
    frame = frame[[*names, "dose", "cumulative_cc"]].rename(columns={"dose": "dose_gy"})
    return frame.astype(kinds)


def _draw(
    patients: Patient | Cohort,
    want: Wanted,
    step_gy: float | None,
    plot: Path,
    by: str | None,
    volume: str,
) -> None:
    from lundprobe_zarr.cli.console import count, say
    from lundprobe_zarr.figures.dvh import draw_dvh
    from lundprobe_zarr.figures.notebook import save_png
    from lundprobe_zarr.labelled.dvh import curves

    with _progress(patients, want) as done:
        found = curves(patients, want, step_gy, done)
    save_png(draw_dvh(found, by, volume, (5, 95)), plot, dpi=150)
    say(f"Drew {count(found.sizes['segmentation'], 'segmentation')} into {plot.resolve()}.")


def _progress(
    patients: Patient | Cohort, want: Wanted
) -> AbstractContextManager[Callable[[str], None]]:
    """Show the progress over many patients' voxels."""
    from lundprobe_zarr.cli.steps import steps_on_terminal
    from lundprobe_zarr.cohort import Cohort

    if want.method == "voxels" and isinstance(patients, Cohort):
        return steps_on_terminal("Reading", len(patients))
    return nullcontext(lambda patient_id: None)


def _shown(frame: pd.DataFrame) -> pa.Table:
    """Return the columns for people to read: without those that say nothing here."""
    empty: list[Any] = [
        c for c in _OFTEN_EMPTY if c in frame and frame[c].replace("", None).isna().all()
    ]
    if "source" in frame and frame["source"].nunique() == 1:
        empty.append("source")
    return arrow_table(frame.drop(columns=[*(c for c in _NOT_SHOWN if c in frame), *empty]))
