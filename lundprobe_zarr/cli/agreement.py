"""`agreement`: compare segmentations, also predictions of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.choosing import Structures, Where, cohort_where, names
from lundprobe_zarr.cli.dvh import Grid
from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
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

    from lundprobe_zarr.cohort import Cohort
    from lundprobe_zarr.dataset.predictions import MaskSource

_MEASURES = ("dice", "surface_dice_1mm", "surface_dice_2mm", "hd95_mm", "assd_mm", "difference_cc")


def agreement(
    dataset: Dataset,
    predictions: Annotated[
        str | None,
        typer.Option(
            metavar="LOCATION",
            help="Predictions to compare: what lp.write_prediction wrote, or a folder of NIfTI "
            "files, such as nnU-Net's output.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER=NAME[,...]",
            help="Numbers of label maps, e.g. 1=Rectum,2=Bladder [default: from dataset.json].",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the predictions in a folder of NIfTI files [default: its own]."),
    ] = None,
    where: Where = None,
    structures: Structures = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[,KIND...]",
            help="Kinds of pairs, e.g. clinical_prediction or nnunet_observer [default: all].",
        ),
    ] = None,
    grid: Annotated[Grid, typer.Option(help="Grid of the predictions.")] = Grid.mri,
    form: FormOption = None,
    output: OutputFile = None,
    storage_options: StorageOptions = None,
    predictions_options: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE",
            help="The same for --predictions, if they are somewhere else than the dataset "
            "[default: those of --storage-options].",
        ),
    ] = None,
) -> None:
    """Compare segmentations: Dice, surface Dice, distances, volumes, edits.

    With --predictions, these are compared with the dataset's segmentations, from the voxels. A row
    is a patient, structure and pair; differences are the prediction's minus the other's. Structures
    that were not predicted, or that a patient lacks, are listed and have no row. Without it, the
    rows are those of the table that `measure` wrote. The form `table` has medians over patients.
    """
    from lundprobe_zarr.cli.console import count

    if predictions is None and (labels or name or predictions_options or grid is not Grid.mri):
        raise UsageError("--labels, --name, --grid or --predictions-options without --predictions")
    kind = output_form(form, output)
    chosen = names("--structures", structures), names("--pairs", pairs)
    patients = cohort_where(dataset, where, storage_options)
    if predictions is None:
        from lundprobe_zarr.labelled.agreement import agreement as agreement_of

        found = agreement_of(patients, *chosen)
    else:
        from lundprobe_zarr.labelled.predictions import mask_source

        source = {name: predictions} if name else predictions
        own = _options_of(predictions_options, storage_options)
        masks = mask_source(source, _labels(labels), own)
        found = _predicted(patients, masks, *chosen, grid.value)
    _tell_left_out(found)
    table = _medians(found) if kind is Format.table else found
    write_rows(arrow_table(table), kind, output, count(len(found), "pair"))


def _predicted(
    patients: Cohort,
    masks: MaskSource,
    structures: Sequence[str] | None,
    pairs: Sequence[str] | None,
    grid: str,
) -> pd.DataFrame:
    from lundprobe_zarr.cli.steps import steps_on_terminal
    from lundprobe_zarr.labelled.agreement import predicted_agreement, predictions_wanted

    wanted = predictions_wanted(patients, structures, pairs, grid)
    with steps_on_terminal("Comparing", len(patients)) as step:
        return predicted_agreement(patients, masks, wanted, step)


def _options_of(given: str | None, storage_options: str | None) -> dict[str, Any]:
    """Return the storage options of the predictions: their own, or the dataset's."""
    if given is None:
        return parse_options(storage_options)
    return parse_options(given, "--predictions-options")


def _labels(text: str | None) -> dict[int, str] | None:
    """Return the structure of each number."""
    if text is None:
        return None
    found: dict[int, str] = {}
    for item in names("--labels", text):
        number, _, structure = item.partition("=")
        if not number.strip().isdecimal() or not structure.strip():
            raise UsageError(f"--labels {text}", expected="numbers and names, e.g. 1=Rectum")
        if int(number) in found:
            raise UsageError(f"--labels {text}: {int(number)} twice", expected="each number once")
        found[int(number)] = structure.strip()
    return found


def _tell_left_out(found: pd.DataFrame) -> None:
    """List on standard error what was not compared and why, grouped by reason."""
    from lundprobe_zarr.cli.console import count

    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in found.attrs.get("not_compared", []):
        what = one["structure"] or ""
        alike.setdefault((one["prediction"], what, one["reason"]), []).append(one["patient_id"])
    if alike:
        typer.echo("Not compared, and in no row:", err=True)
    for (name, structure, reason), patients in alike.items():
        who = patients[0] if len(patients) == 1 else count(len(patients), "patient")
        if len(patients) > 1:
            who += f" such as {patients[0]}"
        shown = ", ".join(t for t in (structure, who) if t)
        typer.echo(f"  {name}: {shown}: {reason}", err=True)


def _medians(found: pd.DataFrame) -> pd.DataFrame:
    """Return a row a kind of pair and structure, with medians over its rows."""
    keys = ["b_source", "pair", "structure"]
    keys = keys if found["pair"].str.endswith("_prediction").all() else keys[1:]
    measures = [m for m in _MEASURES if m in found]
    numbers = found.astype(dict.fromkeys(measures, float))
    grouped = numbers.groupby(keys, sort=False)
    table = grouped[measures].median().round(3).reset_index()
    table.insert(len(keys), "patients", grouped["patient_id"].nunique().to_numpy())
    table.insert(len(keys) + 1, "pairs", grouped.size().to_numpy())
    return table.rename(columns={"b_source": "prediction"})
