"""Whether the plans of patients meet a set of constraints on dose and volume."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.cohort.core import Cohort
from lundprobe_zarr.cohort.dose_volume import (
    CLINICAL,
    MaskGrid,
    Method,
    OnePatient,
    Outside,
    Segmentation,
    Wanted,
    of_patients,
    require_patients,
    wanted,
)
from lundprobe_zarr.cohort.patient import Patient
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.constraints import (
    Constraint,
    ConstraintSet,
    constraint_set,
    constraints_of_text,
    shipped_sets,
)
from lundprobe_zarr.measures.histogram import UNKNOWN, Bounds
from lundprobe_zarr.measures.metrics import BODY, measure, needs_body
from lundprobe_zarr.vocabulary.suggest import suggestion

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Progress = Callable[[str], None]
#: What a constraint comes to.
PASS, FAIL, MISSING, NOT_EVALUABLE = "pass", "fail", "missing", "not evaluable"


def plan_check(
    patients: Patient | Cohort,
    constraints: str | os.PathLike[str] | Mapping[str, Any],
    *,
    grid: MaskGrid = "sct",
    method: Method = "table",
    outside: Outside = "leave out",
) -> pd.DataFrame:
    """Evaluate constraints on the clinical structures of patients.

    What passes and fails is exact also from the table: where its bins do not tell, that patient's
    voxels are read.

    Parameters
    ----------
    patients : Patient or Cohort
        Whose plans.
    constraints : str, path or mapping
        Name of a set that comes with the package (`icru`), a JSON file, or what such a file holds:
        `{"name": …, "constraints": [{"structure": "Rectum", "metric": "V38.43Gy[%]",
        "limit": "<= 15 %", "citation": …}, …]}`.
    grid : {'sct', 'mri'}
        Grid of masks and dose. The plan was made on the sCT grid.
    method : {'table', 'voxels'}
        As for `dvh`.
    outside : {'leave out', 'zero'}
        As for `dvh`.

    Returns
    -------
    pandas.DataFrame
        A row a patient and constraint: `patient_id`, `part`, `protocol`, `structure`, `metric`,
        `limit`, `value` and `unit`, `status`, `reason`, `covered_pct`, `method`, `citation`.
        `status` is `pass`, `fail`, `missing` (the patient lacks the structure) or `not evaluable`,
        for the `reason` given. A value that must not be below a limit is not evaluable where part
        of the structure is outside the planning dose grid: its dose is not known there.

    Raises
    ------
    UsageError
        For a set that is unknown or not valid, naming the constraint: a metric or limit that does
        not parse, or a limit in another unit than its metric's.
    UnknownLabelError
        For an unknown structure.
    DatasetError
        If the dataset lacks the table `dvh`, or cannot be read.

    Examples
    --------
        lp.plan_check(cohort, "icru").groupby(["structure", "metric"]).status.value_counts()
    """
    checked = read_constraints(constraints)
    return check(patients, checked, wanted(None, CLINICAL, grid, method, outside))


def read_constraints(given: str | os.PathLike[str] | Mapping[str, Any]) -> ConstraintSet:
    """Return a set of constraints by name, from a file or from data; raise as `plan_check` does."""
    if isinstance(given, Mapping):
        return constraint_set(given, "constraints")
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError(f"constraints is {given!r}", expected="a name, a path or a mapping")
    shipped = shipped_sets()
    if given in shipped:
        return constraints_of_text(shipped[str(given)], str(given))
    try:
        text = Path(given).read_bytes()
    except OSError as error:
        raise UsageError(
            f"no set of constraints ({error.strerror})",
            where=os.fspath(given),
            expected="a JSON file, or the name of a set that comes with the package",
            remedy=suggestion(os.fspath(given), shipped),
        ) from error
    return constraints_of_text(text, os.fspath(given))


def check(
    patients: Patient | Cohort,
    constraints: ConstraintSet,
    want: Wanted,
    done: Progress = lambda patient_id: None,
) -> pd.DataFrame:
    """Return a row a patient and constraint on a clinical structure; see `plan_check`."""
    import pandas as pd

    require_patients("plan_check", patients)
    structures = tuple(dict.fromkeys(c.structure for c in constraints.constraints))
    want = replace(want, structures=structures, sources=(CLINICAL,))
    with_body = needs_body(c.metric for c in constraints.constraints)
    everyone = [patients] if isinstance(patients, Patient) else list(patients)
    found = of_patients(patients, want, with_body)
    by_id = {} if want.method == "voxels" else {one.patient_id: one for one in found}
    rows: list[Row] = []
    for patient in everyone:
        one = next(found) if want.method == "voxels" else by_id.get(patient.patient_id)
        rows += _judged(patient, one, constraints, want)
        done(patient.patient_id)
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    return frame.astype({"value": "float64", "covered_pct": "float64"})


_COLUMNS = [
    *("patient_id", "part", "protocol", "structure", "metric", "limit", "value", "unit"),
    *("status", "reason", "covered_pct", "method", "citation"),
]


def _judged(
    patient: Patient, one: OnePatient | None, constraints: ConstraintSet, want: Wanted
) -> Iterator[Row]:
    """Yield a patient's rows, in the order of the constraints."""
    row = patient.row
    about = {name: row[name] for name in ("patient_id", "part", "protocol")}
    found: dict[Constraint, Row] = {}
    for s in one.segmentations if one else ():
        for c in constraints.constraints:
            if c.structure == s.key["structure"]:
                found[c] = _judgement(c, s, one, want, patient)
    for c in constraints.constraints:
        yield (
            about
            | {
                "structure": c.structure,
                "metric": c.metric.text,
                "limit": c.limit_text,
                "unit": c.metric.unit,
                "citation": c.citation,
                "method": want.method,
            }
            | found.get(
                c, {"status": MISSING, "reason": f"no {c.structure} on the {want.grid} grid"}
            )
        )


def _judgement(
    constraint: Constraint, s: Segmentation, one: OnePatient | None, want: Wanted, patient: Patient
) -> Row:
    """Return the columns of value and status of a constraint on a segmentation."""
    body, method = one.body if one else None, want.method
    bounds = UNKNOWN if s.doses is None else measure(constraint.metric, s.doses, body)
    is_unknown = all(b != b for b in bounds)
    if not is_unknown and constraint.holds(bounds) is None:
        bounds, method = _exact(constraint, want, patient), "voxels"
    reason = s.unknown_because or _unknown(constraint, bounds, s, want)
    status = NOT_EVALUABLE if reason else PASS if constraint.holds(bounds) else FAIL
    return {
        "value": bounds.value,
        "status": status,
        "reason": reason,
        "covered_pct": s.covered_pct,
        "method": method,
    }


def _unknown(constraint: Constraint, bounds: Bounds, s: Segmentation, want: Wanted) -> str:
    """Return why a value cannot be judged; empty if it can."""
    if bounds.value != bounds.value:
        if constraint.metric.kind == "CI":
            return f"no {BODY} on the {want.grid} grid, or no volume that receives the dose"
        if constraint.metric.of == "cc":
            return f"smaller than {float(constraint.metric.amount):g} cm3"
        return "no such dose"
    uncovered = s.covered_pct is not None and s.covered_pct < 100 and want.outside != "zero"
    if constraint.is_least and uncovered:
        return f"{100 - (s.covered_pct or 0):.3g} % of it is outside the planning dose grid"
    return ""


def _exact(constraint: Constraint, want: Wanted, patient: Patient) -> Bounds:
    """Return the metric from the patient's voxels."""
    exact = replace(want, structures=(constraint.structure,), method="voxels")
    for one in of_patients(patient, exact, needs_body([constraint.metric])):
        for s in one.segmentations:
            if s.doses is not None:
                return measure(constraint.metric, s.doses, one.body)
    raise UsageError(
        f"the table dvh has a dose in {constraint.structure}, which the store lacks",
        where=patient.location.url,
        patient=patient.patient_id,
        expected="a table of the same conversion",
        remedy="make it again with `lundprobe-zarr finalise --rebuild`",
    )
