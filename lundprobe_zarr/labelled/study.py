"""The observer study in one call: did showing the uncertainty map change what observers drew?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.labelled.agreement import agreement, table_of
from lundprobe_zarr.measures.paired import both_known, equal_spread, holm, signed_rank
from lundprobe_zarr.measures.uncertainty import decision_sd, disagreement, entropy_bits
from lundprobe_zarr.storage.local import named
from lundprobe_zarr.vocabulary.names import STEPS
from lundprobe_zarr.vocabulary.suggest import suggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Measures that the study tests, by default all: columns of `agreement`, the voxels edited, and
#: their share in each bin of the uncertainty map.
MEASURES = (
    "dice", "surface_dice_1mm", "surface_dice_2mm", "hd95_mm", "assd_mm", "added_path_mm",
    "difference_cc", "edited_voxels", "edit_rate",
)  # fmt: skip
#: Pairs within one step, of which step 1 and step 2 are compared.
_NETWORK, _BETWEEN = "nnunet_observer", "observer_observer"
#: The row of all observers together.
_ALL = "all"
_RATE = "edit_rate"


@dataclass(frozen=True)
class ObserverStudy:
    """Tables and figures of the study; see `observer_study`.

    Attributes
    ----------
    tests : pandas.DataFrame
        A row per structure, measure, pair, observer and test. `pair` is `nnunet_observer`, how far
        an observer's mask is from the network's, or `observer_observer`, how far observers are from
        each other. `observer` is one of them, or `all`: the patient's mean over observers or
        pairs. `n` patients have both steps; medians and quartiles by step; `difference_median` of
        step 2 - step 1; `statistic` and two-sided `p` of the test; `p_holm`, adjusted over the
        rows of a structure, measure and test, those of `all` too. NaN where no test is possible.
    edits : pandas.DataFrame
        A row per structure, bin of the uncertainty map and step: voxels of all patients and
        observers, edited, added and removed ones, and `edit_rate`.
    calibration : pandas.DataFrame
        A row per structure, step and share of `folds` (`fold_mean`): voxels, those in the
        observers' masks, their share `inside_rate`, and of the share of folds the `entropy`, bits,
        `decision_sd` and `disagreement`, beside the mean of the map, `map_mean`.
    agreement : pandas.DataFrame
        The rows of the table that were tested.
    patients : int
        Patients with rows.
    """

    tests: pd.DataFrame
    edits: pd.DataFrame
    calibration: pd.DataFrame
    agreement: pd.DataFrame
    patients: int

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Figures by name: `agreement`, `edits`, `calibration`, `estimates`."""
        from lundprobe_zarr.figures import study as draw
        from lundprobe_zarr.figures.notebook import NotebookFigure

        of_network = self.agreement[self.agreement["pair"] == _NETWORK]
        wanted = {
            "agreement": (draw.draw_agreement, of_network),
            "edits": (draw.draw_edits, self.edits),
            "calibration": (draw.draw_calibration, self.calibration),
            "estimates": (draw.draw_estimates, self.calibration),
        }
        found: dict[str, Figure] = {}
        for name, (function, frame) in wanted.items():
            found[name] = NotebookFigure()
            function(found[name], frame, self.patients)
        return found

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the tables as CSV and the figures as PNG to a folder; return the files.

        Raises `OSError` if a file cannot be written.
        """
        place = Path(folder)
        with named(place):
            place.mkdir(parents=True, exist_ok=True)
            tables = {"tests": self.tests, "edits": self.edits, "calibration": self.calibration}
            written = [place / f"{name}.csv" for name in tables]
            for path, table in zip(written, tables.values(), strict=True):
                table.to_csv(path, index=False)
            for name, figure in self.figures.items():
                written.append(place / f"{name}.png")
                figure.savefig(written[-1], dpi=150)
        return written


def observer_study(
    cohort: Cohort,
    structures: str | Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
) -> ObserverStudy:
    """Compare what observers drew without the uncertainty map (step 1) and with it (step 2).

    Reads the tables `agreement` and `uncertainty`, no voxels. Each measure is tested by patient,
    for each observer and for all: Wilcoxon's signed-rank test for a shift, the Fligner-Killeen
    test for a change of spread. Patients who lack a step are left out of that row.

    Parameters
    ----------
    cohort : Cohort
        The patients; those of the extended part count.
    structures : str or sequence of str, optional
        `CTVT_427` or `Rectum`; default: both.
    measures : sequence of str, optional
        Some of `dice`, `surface_dice_1mm`, `surface_dice_2mm`, `hd95_mm`, `assd_mm`,
        `added_path_mm`, `difference_cc`, `edited_voxels`, `edit_rate`. Default: all. `edit_rate`
        is tested by bin of the uncertainty map, as `edit_rate_0.2_0.3`.

    Returns
    -------
    ObserverStudy
        Tables `tests`, `edits`, `calibration`, and `figures`; `save(folder)` writes them.

    Raises
    ------
    UnknownLabelError
        For an unknown structure, if there are no extended patients, or if the dataset has no tables
        yet: run `lundprobe-zarr measure`.
    MissingStructureError
        For a structure that was not segmented by network and observers.
    UsageError
        For an unknown measure.

    Examples
    --------
        study = lp.observer_study(lp.open_cohort("DATASET"))
        study.tests.query("measure == 'dice' and test == 'wilcoxon'")
        study.save("study")
    """
    chosen = _measures(measures)
    pairs = agreement(cohort, structures, (_NETWORK, _BETWEEN))
    pairs["edited_voxels"] = pairs["added_voxels"] + pairs["removed_voxels"]
    there = list(dict.fromkeys(pairs["structure"]))
    uncertainty = table_of(cohort, "uncertainty")
    uncertainty = uncertainty[uncertainty["structure"].isin(there)]
    by_map = uncertainty[uncertainty["estimate"] == "map"]
    samples = [(m, pairs, m) for m in chosen if m != _RATE]
    samples += list(_rates_by_bin(by_map)) if _RATE in chosen else []
    return ObserverStudy(
        pd.DataFrame([row for s in there for sample in samples for row in _tests(s, *sample)]),
        _edits(by_map),
        _calibration(uncertainty[uncertainty["estimate"] == "fold_mean"]),
        pairs,
        int(pairs["patient_id"].nunique()),
    )


def _rates_by_bin(by_map: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield the edit rates of each bin of the map, in the form of pairs with the network."""
    rows = by_map.assign(pair=_NETWORK, b_observer=by_map["observer"], b_step=by_map["step"])
    for (low, high), some in rows.groupby(["bin_low", "bin_high"]):
        yield f"{_RATE}_{low:g}_{high:g}", some, _RATE


def _measures(measures: Sequence[str] | None) -> list[str]:
    chosen = list(MEASURES if measures is None else measures)
    for measure in chosen:
        if measure not in MEASURES:
            raise UsageError(
                f"measures: no measure {measure!r}",
                expected=f"some of {', '.join(MEASURES)}",
                remedy=suggestion(measure, MEASURES),
            )
    return chosen


def _tests(structure: str, name: str, rows: pd.DataFrame, measure: str) -> Iterator[dict[str, Any]]:
    """Yield the tests of a measure, called `name`, of a structure."""
    some = list(_compared(rows[rows["structure"] == structure], measure))
    for test in ("wilcoxon", "fligner_killeen"):
        adjusted = holm([one[test].p for one in some])
        for one, p in zip(some, adjusted, strict=True):
            about = {"structure": structure, "measure": name} | one["about"] | {"test": test}
            outcome = {"statistic": one[test].statistic, "p": one[test].p, "p_holm": p}
            yield about | one["values"] | outcome


def _compared(rows: pd.DataFrame, measure: str) -> Iterator[dict[str, Any]]:
    """Yield the tests of a measure for each observer, for all, and between observers."""
    network, between = (rows[rows["pair"] == pair] for pair in (_NETWORK, _BETWEEN))
    groups = [
        (_NETWORK, str(observer), network[network["b_observer"] == observer])
        for observer in sorted(network["b_observer"].unique())
    ]
    groups += [(_NETWORK, _ALL, network)] + [(_BETWEEN, _ALL, between)] * bool(len(between))
    for pair, observer, some in groups:
        first, second = both_known(*(_means(some, step, measure) for step in STEPS))
        yield {
            "about": {"pair": pair, "observer": observer},
            "values": {"n": len(first)} | _described(first, second),
            "wilcoxon": signed_rank(first, second),
            "fligner_killeen": equal_spread(first, second),
        }


def _means(rows: pd.DataFrame, step: int, measure: str) -> FloatArray:
    """Return each patient's mean of a measure in a step, NaN without any value."""
    everyone = sorted(rows["patient_id"].unique())
    of_step = rows[rows["b_step"] == step]
    means = of_step.groupby("patient_id")[measure].mean().reindex(everyone)
    return means.to_numpy(np.float64, na_value=np.nan)


def _described(first: FloatArray, second: FloatArray) -> dict[str, float]:
    found = {}
    for step, values in zip(STEPS, (first, second), strict=True):
        quartiles = np.percentile(values, (25, 50, 75)) if len(values) else [np.nan] * 3
        for name, value in zip(("q1", "median", "q3"), quartiles, strict=True):
            found[f"step{step}_{name}"] = float(value)
    found["difference_median"] = float(np.median(second - first)) if len(first) else np.nan
    return found


_COUNTS = ["voxels", "inside_voxels", "edited_voxels", "added_voxels", "removed_voxels"]


def _edits(rows: pd.DataFrame) -> pd.DataFrame:
    keys = ["structure", "bin_low", "bin_high", "step"]
    found = rows.groupby(keys, as_index=False)[_COUNTS].sum().drop(columns="inside_voxels")
    found["edit_rate"] = _rate(found["edited_voxels"], found["voxels"])
    return found


def _calibration(rows: pd.DataFrame) -> pd.DataFrame:
    """Pool the rows by share of folds; patients with other numbers of folds stay apart."""
    whose = ["patient_id", "structure", "step", "observer"]
    folds = rows.groupby(whose)["bin_low"].transform("size") - 1
    known = rows["voxels"].where(rows["map_mean"].notna(), 0)
    rows = rows.assign(folds=folds, known=known, map_sum=rows["map_mean"] * known)
    keys = ["structure", "step", "folds", "bin_low"]
    summed = ["voxels", "inside_voxels", "known", "map_sum"]
    found = rows.groupby(keys, as_index=False)[summed].sum()
    found = found.rename(columns={"bin_low": "fold_mean"})
    found["inside_rate"] = _rate(found["inside_voxels"], found["voxels"])
    p, n = found["fold_mean"].to_numpy(), found["folds"].to_numpy()
    found["entropy"], found["decision_sd"] = entropy_bits(p), decision_sd(p)
    found["disagreement"] = [float(disagreement(a * b, b)) for a, b in zip(p, n, strict=True)]
    found["map_mean"] = _rate(found.pop("map_sum"), found.pop("known"))
    return found


def _rate(part: pd.Series, whole: pd.Series) -> FloatArray:
    counted = whole.to_numpy(np.float64)
    share: FloatArray = np.full(len(counted), np.nan)
    np.divide(part.to_numpy(np.float64), counted, out=share, where=counted > 0)
    return share
