"""Dose-volume histograms of patients and cohorts: labelled curves, or a table of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.cohort.core import Cohort
from lundprobe_zarr.cohort.dose_volume import (
    CLINICAL,
    MaskGrid,
    Method,
    OnePatient,
    Outside,
    Segmentation,
    Wanted,
    missing,
    of_patients,
    require_patients,
    wanted,
    without_any,
)
from lundprobe_zarr.cohort.patient import Patient
from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.measures.metrics import Metric, measure, needs_body, parse_metrics
from lundprobe_zarr.schema.layout import CONVENTIONS
from lundprobe_zarr.schema.tables import DVH_BINS_PER_GY, DVH_STEP_GY, SEGMENTATION_COLUMNS
from lundprobe_zarr.stores.extensions import load_extensions
from lundprobe_zarr.stores.tree import TEXT
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

if TYPE_CHECKING:
    import pandas as pd

#: Step of curves from voxels, Gy.
STEP_GY = 0.01
#: Most doses of a curve: a higher number is a dose in another unit, or a mistaken step.
_MOST_DOSES = 1_000_000
#: A curve's axis goes at least so far, Gy, so that doses near the prescription can be selected.
_LEAST_GY = 1.1 * PRESCRIPTION_GY
#: Called with the id of each patient who is done.
Progress = Callable[[str], None]


def _silent(patient_id: str) -> None:
    pass


@overload
def dvh(
    patients: Patient | Cohort,
    structures: str | Sequence[str] | None = None,
    sources: str | Sequence[str] = CLINICAL,
    *,
    grid: MaskGrid = "sct",
    metrics: None = None,
    step_gy: float | None = None,
    method: Method = "voxels",
    outside: Outside = "leave out",
) -> xr.Dataset: ...


@overload
def dvh(
    patients: Patient | Cohort,
    structures: str | Sequence[str] | None = None,
    sources: str | Sequence[str] = CLINICAL,
    *,
    grid: MaskGrid = "sct",
    metrics: str | Sequence[str],
    step_gy: float | None = None,
    method: Method = "voxels",
    outside: Outside = "leave out",
) -> pd.DataFrame: ...


def dvh(
    patients: Patient | Cohort,
    structures: str | Sequence[str] | None = None,
    sources: str | Sequence[str] = CLINICAL,
    *,
    grid: MaskGrid = "sct",
    metrics: str | Sequence[str] | None = None,
    step_gy: float | None = None,
    method: Method = "voxels",
    outside: Outside = "leave out",
) -> xr.Dataset | pd.DataFrame:
    """Return cumulative dose-volume histograms, or metrics of them.

    Voxels are counted: a dose is that of a voxel's centre, and a volume receives "at least" it.
    Tissue outside the planning dose grid has no dose and is left out; `covered_pct` says how much
    is inside, and percentages are of that part.

    Parameters
    ----------
    patients : Patient or Cohort
        Whose. A cohort has no rows of segmentations that a patient lacks.
    structures : str or sequence of str, optional
        Names of structures. Default: all that there are.
    sources : str or sequence of str
        `clinical`, `nnunet`, `nnunet_fold` or `observer`. All but clinical ones are on the MRI grid
        of extended patients.
    grid : {'sct', 'mri'}
        Grid of masks and dose. The plan was made on the sCT grid.
    metrics : str or sequence of str, optional
        `D98%`, `D0.03cc`, `V38.43Gy[%]`, `V38.43Gy[cc]`, `V95%` (of 42.7 Gy), `mean`, `min`, `max`
        (with `[%]`: of 42.7 Gy), `HI` (homogeneity index, ICRU Report 83), `CI` and `CI[95%]`
        (Paddick's conformity index of an isodose, within BODY). None gives the curves.
    step_gy : float, optional
        Distance of the curve's doses, Gy: 0.01 from voxels; 0.1, or a multiple, from the table.
    method : {'voxels', 'table'}
        `voxels` reads masks and dose and is exact. `table` reads the table `dvh` alone: a dose is
        within 0.05 Gy, and a volume is exact at a dose within 0.05 Gy of the one that was asked.
    outside : {'leave out', 'zero'}
        `zero` counts tissue outside the planning dose grid as receiving 0 Gy.

    Returns
    -------
    xarray.Dataset
        Without `metrics`: `cumulative_cc (segmentation, dose)`, cm³, float64; NaN for segmentations
        without dose. `dose` is in Gy, from 0 to 47 at least. Coordinates along `segmentation` are
        `patient_id`, `part`, `protocol`, `source`, `structure`, `fold` and `step` (NaN if none),
        `observer` ("" if none), `volume_cc` of the whole structure, and `covered_pct` (NaN if
        unknown). `.sel` takes `structure`, `source` and `patient_id`, one a call.
        `.lp.plot_dvh()` draws it.
    pandas.DataFrame
        With `metrics`: a row a segmentation, a column a metric; `attrs["units"]` has their units.
        NaN where there is no dose, or less volume than the metric names.

    Raises
    ------
    UsageError
        For a metric that does not parse, with the nearest right one, or another invalid argument.
    UnknownLabelError
        For an unknown structure or source, and for a patient without dose or such masks.
    MissingStructureError
        For a structure that the patient, or every patient of the cohort, lacks.
    DatasetError
        If the dataset lacks the table `dvh`, or cannot be read.

    Examples
    --------
        lp.dvh(patient, metrics=["D98%", "D0.03cc", "V38.43Gy[cc]"])
        lp.dvh(cohort, "Rectum", method="table").lp.plot_dvh(by="protocol")
    """
    want = wanted(structures, sources, grid, method, outside)
    if metrics is None:
        return curves(patients, want, step_gy)
    return metric_table(patients, want, parse_metrics(metrics))


def metric_table(
    patients: Patient | Cohort, want: Wanted, metrics: Sequence[Metric], done: Progress = _silent
) -> pd.DataFrame:
    """Return a row a segmentation with its metrics; see `dvh`."""
    import pandas as pd

    from lundprobe_zarr.labelled import metric_frame as metric_frame  # registers `frame.lp`

    rows = []
    for one in _checked(patients, want, needs_body(metrics)):
        for s in one.segmentations:
            row = {**s.key, "volume_cc": s.volume_cc, "covered_pct": s.covered_pct}
            rows.append(row | {m.text: _value(m, s, one) for m in metrics})
        done(one.patient_id)
    kinds = dict.fromkeys(("fold", "step"), "Int64")
    kinds |= dict.fromkeys(("volume_cc", "covered_pct", *(m.text for m in metrics)), "float64")
    frame = pd.DataFrame(rows).astype(kinds)
    frame.attrs |= _about(want) | {
        "units": {"volume_cc": "cm3", "covered_pct": "%"} | {m.text: m.unit for m in metrics}
    }
    return frame


def _value(metric: Metric, segmentation: Segmentation, of: OnePatient) -> float | None:
    doses = segmentation.doses
    return None if doses is None else measure(metric, doses, of.body).value


@dataclass(frozen=True)
class _Curve:
    """What is kept of a segmentation: its counts at the doses of the curve, and its labels."""

    of: Segmentation
    cumulative_cc: npt.NDArray[np.float64] | None


def curves(
    patients: Patient | Cohort,
    want: Wanted,
    step_gy: float | None = None,
    done: Progress = _silent,
) -> xr.Dataset:
    """Return the curves of all segmentations on one axis of doses; see `dvh`."""
    load_extensions()  # the accessor, which draws
    step = _step(step_gy, want)
    kept = []
    for one in _checked(patients, want, with_body=False):
        kept += [_curve(s, step) for s in one.segmentations]
        done(one.patient_id)
    lengths = [len(c.cumulative_cc) for c in kept if c.cumulative_cc is not None]
    doses = max(int(_LEAST_GY / step) + 2, *lengths, 0)
    cumulative = np.full((len(kept), doses), np.nan)
    for row, curve in zip(cumulative, kept, strict=True):
        if curve.cumulative_cc is not None:
            row[:] = 0.0
            row[: len(curve.cumulative_cc)] = curve.cumulative_cc
    about = {"units": "cm3", "long_name": "volume that receives at least the dose"}
    return (
        xr.Dataset(
            {"cumulative_cc": (("segmentation", "dose"), cumulative, about)},
            _labels([c.of for c in kept])
            | {"dose": ("dose", _doses(doses, step), {"units": "Gy", "long_name": "dose"})},
            _about(want)
            | {"Conventions": CONVENTIONS, "title": "cumulative dose-volume histograms"},
        )
        .set_xindex("structure")
        .set_xindex("source")
        .set_xindex("patient_id")
    )


def _about(want: Wanted) -> dict[str, Any]:
    return {"grid": want.grid, "method": want.method, "outside": want.outside}


def _step(step_gy: float | None, want: Wanted) -> Fraction:
    """Return the step as the decimal number that was written."""
    usual = DVH_STEP_GY if want.method == "table" else STEP_GY
    given = usual if step_gy is None else step_gy
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not np.isfinite(given) or given <= 0:
        raise UsageError(f"step_gy={step_gy!r}", expected="a dose in Gy above 0, e.g. 0.01")
    step = Fraction(repr(float(given)))
    if want.method == "table" and (step * DVH_BINS_PER_GY).denominator != 1:
        raise UsageError(
            f"step_gy={step_gy!r} from the table",
            expected=f"a multiple of {DVH_STEP_GY} Gy, the width of its bins",
            remedy='finer steps take method="voxels"',
        )
    return step


def _doses(number: int, step: Fraction) -> npt.NDArray[np.float64]:
    """Multiples of the step, each the nearest float64."""
    return np.arange(number, dtype=np.float64) * step.numerator / step.denominator


def _curve(segmentation: Segmentation, step: Fraction) -> _Curve:
    doses = segmentation.doses
    if doses is None:
        return _Curve(segmentation, None)
    number = int(max(0.0, doses.most) / step) + 2
    if number > _MOST_DOSES:
        raise UsageError(
            f"a curve of {number} doses, up to {doses.most:g} Gy",
            patient=str(segmentation.key["patient_id"]),
            expected=f"at most {_MOST_DOSES}",
            remedy="take a larger step_gy, or metrics",
        )
    counts = np.trim_zeros(doses.counts(_doses(number, step)), "b")
    return _Curve(segmentation, np.append(counts, 0) * doses.voxel_cc)


def _labels(segmentations: Sequence[Segmentation]) -> dict[str, Any]:
    """Return the coordinates along `segmentation`."""
    coords: dict[str, Any] = {}
    for name in SEGMENTATION_COLUMNS:
        if name == "grid":
            continue
        values = [s.key[name] for s in segmentations]
        if name in ("fold", "step"):
            numbers = np.array([np.nan if v is None else v for v in values], np.float64)
            coords[name] = ("segmentation", numbers)
        else:
            coords[name] = ("segmentation", np.array([v or "" for v in values], dtype=TEXT))
    for name, unit, values in (
        ("volume_cc", "cm3", [s.volume_cc for s in segmentations]),
        ("covered_pct", "%", [s.covered_pct for s in segmentations]),
    ):
        coords[name] = ("segmentation", np.array(values, np.float64), {"units": unit})
    return coords


def _checked(patients: Patient | Cohort, want: Wanted, with_body: bool) -> Iterator[OnePatient]:
    """Yield patients; raise at the end if what was asked for by name was nowhere."""
    require_patients("dvh", patients)
    found = _Found()
    for one in of_patients(patients, want, with_body):
        yield one._replace(segmentations=found.noted(one.segmentations))
    for structure in want.structures or ():
        if structure not in found.structures:
            raise missing(patients, structure, want)
    if not found.structures:
        raise without_any(patients, want)
    if not found.has_dose and isinstance(patients, Patient):
        raise UnknownLabelError(
            f"patient {patients.patient_id} has no dose on the {want.grid} grid, or none that is "
            "a number",
            patient=patients.patient_id,
            expected="a dose_interpolated.nii.gz in its source",
        )


class _Found:
    """What there was among segmentations that passed."""

    def __init__(self) -> None:
        self.structures: set[str] = set()
        self.has_dose = False

    def noted(self, segmentations: Iterable[Segmentation]) -> Iterator[Segmentation]:
        """Pass segmentations on, one at a time."""
        for s in segmentations:
            self.structures.add(str(s.key["structure"]))
            self.has_dose |= s.doses is not None
            yield s
