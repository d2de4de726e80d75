"""Check a cohort by rules: which patients break which, and what could not be checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lundprobe_zarr.dataset.opening import maker_of
from lundprobe_zarr.errors import LundProbeError, QueryError, UsageError, sentence
from lundprobe_zarr.quality.outcome import Finding, Outcome, Outcomes, Status
from lundprobe_zarr.quality.rules import SEVERITIES, Rule, Rules, Severity, rules_with
from lundprobe_zarr.schema.tables import VIEWS, Column, Table
from lundprobe_zarr.sql.query import tables_named
from lundprobe_zarr.sql.session import shown

if TYPE_CHECKING:
    import pandas as pd

    from lundprobe_zarr.cohort import Cohort

#: The table of findings.
QC = Table(
    "qc",
    "one finding: a rule and a patient who breaks it",
    (
        Column("rule", pa.string(), "id of the rule"),
        Column("severity", pa.string(), "error, warning or info"),
        Column("patient_id", pa.string(), "pseudonymous patient identifier"),
        Column("message", pa.string(), "what was found"),
        Column("value", pa.float64(), "what was compared, in the rule's unit", nullable=True),
        Column("limit", pa.float64(), "what it was compared with", nullable=True),
    ),
)

#: Digits of a number: SQL's decimal constants do not become the nearest float64.
_DIGITS = 12


class QualityReport(Outcomes):
    """The outcome of every rule, for the patients of a cohort.

    Attributes
    ----------
    cohort : Cohort
        The patients who were checked.
    outcomes : tuple of Outcome
        One for each rule, in the rules' order.
    """

    @property
    def table(self) -> pd.DataFrame:
        """The findings: a row a rule and patient that broke it, the gravest first.

        Columns are `rule, severity, patient_id, message, value, limit`.
        """
        frame: pd.DataFrame = self.arrow().to_pandas()
        return frame

    def arrow(self) -> pa.Table:
        """Return the findings as an Arrow table, with column descriptions in field metadata."""
        return QC.from_rows(_row(o, f) for o in self.gravest_first() for f in o.findings)

    def breaks(self, severity: Severity) -> bool:
        """Return whether a rule of this severity or a graver one is broken or not evaluated."""
        grave = SEVERITIES[: SEVERITIES.index(severity) + 1]
        chosen = [o for o in self.outcomes if o.rule.severity in grave]
        return any(o.status in ("flagged", "not evaluated") for o in chosen)

    def to_json(self) -> str:
        """Return rules and findings as JSON."""
        manifest = self.cohort.manifest
        content = manifest.content
        document = {
            "dataset": manifest.name,
            "content_sha256": content and content.sha256,
            "synthetic": manifest.synthetic,
            "patients": len(self.cohort),
            "rules": [_described(o) for o in self.outcomes],
            "findings": self.arrow().to_pylist(),
        }
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save_html(
        self,
        path: str | os.PathLike[str],
        pictures: bool = True,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Write the report as one HTML page that needs no other file.

        Parameters
        ----------
        path : str or path
            The file to write; an existing one is replaced.
        pictures : bool
            Whether to show a slice of each patient with a warning or an error. This reads voxels.
        progress : callable, optional
            Called with the id of each patient whose picture was drawn.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from lundprobe_zarr.quality.report import report_html
        from lundprobe_zarr.storage.local import named, write_local

        page = report_html(self, pictures, progress)
        with named(Path(path)):
            write_local(Path(path), page.encode())


def _row(outcome: Outcome, finding: Finding) -> dict[str, Any]:
    rule = {"rule": outcome.rule.id, "severity": outcome.rule.severity}
    return rule | {
        "patient_id": finding.patient_id,
        "message": finding.message,
        "value": finding.value,
        "limit": finding.limit,
    }


def _described(outcome: Outcome) -> dict[str, Any]:
    found = {"status": outcome.status, "checked": outcome.checked, "flagged": outcome.flagged}
    return outcome.rule.model_dump() | found | {"why": outcome.why}


def qc(cohort: Cohort, rules: Rules | None = None) -> QualityReport:
    """Check the patients of a cohort by rules of quality control.

    The rules are SQL over the dataset's tables; no voxel is read. A rule that is wrong, or whose
    table or column the dataset lacks, is named in the report, and the others are run.

    Parameters
    ----------
    cohort : Cohort
        The patients to check. Those who are usual are found within the cohort.
    rules : path or sequence of rules, optional
        Rules beside those of this package: a JSON file, or the rules as dicts. A rule of the same
        id replaces that of this package; one of severity `off` turns it off.

    Returns
    -------
    QualityReport
        Its `table` has the findings; `save_html` writes a page.

    Raises
    ------
    UsageError
        If `rules` cannot be read, or what it holds is no rule.
    DatasetError
        If a table of the dataset is damaged.
    """
    chosen = rules_with(rules)
    return QualityReport(cohort, tuple(_outcome(cohort, rule) for rule in chosen))


class _WrongRuleError(LundProbeError, ValueError):
    """A rule whose result or message does not fit what a rule has to be."""


def _outcome(cohort: Cohort, rule: Rule) -> Outcome:
    try:
        lacking = lacking_table(cohort, rule.sql)
        if lacking is not None:
            return Outcome(rule, "not evaluated", why=lacking)
        return _judged(cohort, rule, cohort.sql_table(rule.sql))
    except QueryError as error:
        # A column of a later schema: the error says how to get it.
        status: Status = "wrong" if error.command is None else "not evaluated"
        return Outcome(rule, status, why=why_not(error, rule.sql))
    except _WrongRuleError as error:
        return Outcome(rule, "wrong", why=str(error))


def why_not(error: QueryError, sql: str) -> str:
    """Return what an error says of a query, without the query, which stands beside it."""
    return sentence(error, place=False).removeprefix(f"{shown(sql)}: ")


def lacking_table(cohort: Cohort, sql: str) -> str | None:
    """Return what to run, if the dataset lacks a table that a query reads.

    Raises `QueryError` if it is not one SELECT of tables that there can be.
    """
    named = tables_named(sql)
    bases = [VIEWS[name].table if name in VIEWS else name for name in named]
    absent = [name for name in bases if name not in cohort.manifest.tables]
    if not absent:
        return None
    return f"the dataset has no table {absent[0]}; run `{maker_of(absent[0], cohort.location.url)}`"


def _judged(cohort: Cohort, rule: Rule, found: pa.Table) -> Outcome:
    _require_columns(found)
    rows: list[dict[str, Any]] = found.to_pylist()
    strangers = {row["patient_id"] for row in rows} - set(cohort.ids)
    if strangers:
        raise _WrongRuleError(
            f"its patient_id has {min(map(repr, strangers))}", expected="patients of the cohort"
        )
    judged = [row for row in rows if row.get("flagged", True) is not None]
    broken = [row for row in judged if row.get("flagged", True)]
    checks_all = "flagged" not in found.column_names  # then it selects only who breaks it
    checked = len(cohort) if checks_all else len({row["patient_id"] for row in judged})
    findings = tuple(_finding(rule, row) for row in broken)
    values = [(_number(row, "value"), bool(row.get("flagged", True))) for row in judged]
    limits = {_number(row, "limit") for row in judged} - {None}
    return Outcome(
        rule=rule,
        status="flagged" if broken else "passed" if checked else "nothing to check",
        checked=checked,
        flagged=len({f.patient_id for f in findings}),
        findings=findings,
        values=tuple((value, flag) for value, flag in values if value is not None),
        limits=tuple(sorted(v for v in limits if v is not None)),
    )


def _require_columns(found: pa.Table) -> None:
    """Require the columns of a rule's result to have the types that they should."""
    names = found.column_names
    if len(set(names)) < len(names):
        raise _WrongRuleError("two of its columns have one name", expected="a name each")
    is_number: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_null,
    )  # fmt: skip
    expected: Mapping[str, tuple[str, Sequence[Callable[[pa.DataType], bool]]]] = {
        "patient_id": ("text", (pa.types.is_string,)),
        "flagged": ("true or false", (pa.types.is_boolean, pa.types.is_null)),
        "value": ("a number", is_number),
        "limit": ("a number", is_number),
    }
    for name, (words, kinds) in expected.items():
        if name in names and not any(fits(found.schema.field(name).type) for fits in kinds):
            kind = found.schema.field(name).type
            raise _WrongRuleError(f"its column {name} has type {kind}", expected=words)
    if "patient_id" not in names:
        raise _WrongRuleError(
            f"its result has no column patient_id, but {', '.join(names)}", expected="one"
        )


def _finding(rule: Rule, row: dict[str, Any]) -> Finding:
    try:
        message = rule.message_about(row)
    except ValueError as error:
        raise _WrongRuleError(str(error)) from error
    return Finding(row["patient_id"], message, _number(row, "value"), _number(row, "limit"))


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """Return a finite number of a row; None for null, NaN and infinity, which JSON has not."""
    value = row.get(name)
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def require_severity(severity: str) -> Severity:
    """Return a severity. Raises `UsageError` for anything else."""
    for known in SEVERITIES:
        if severity == known:
            return known
    raise UsageError(f"severity {severity!r}", expected=f"one of {', '.join(SEVERITIES)}")
