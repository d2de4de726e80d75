"""`qc` and `check-against-paper`: unusual patients, and differences to the published dataset."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.choosing import Where, cohort_where
from lundprobe_zarr.cli.place import Dataset, StorageOptions, require_file
from lundprobe_zarr.cli.status import FAILED, WRONG_USAGE

if TYPE_CHECKING:
    from lundprobe_zarr.quality.check import QualityReport
    from lundprobe_zarr.quality.outcome import Outcome

#: Most findings shown in the terminal.
_SHOWN = 30
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class FailOn(StrEnum):
    """Least severity of a broken rule that makes the command fail."""

    error = "error"
    warning = "warning"
    info = "info"
    never = "never"


def qc(
    dataset: Dataset,
    rules: Annotated[
        Path | None, typer.Option("--rules", help="A JSON file of rules beside those shipped.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report here, as one HTML page.")
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Without pictures; no voxel is read.")
    ] = False,
    where: Where = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Least severity that sets the exit status.")
    ] = FailOn.error,
    as_json: AsJson = False,
    storage_options: StorageOptions = None,
) -> None:
    """Check patients by rules of quality control, which are SQL over the tables.

    Exit status 1 if a rule of severity error is broken or cannot be evaluated (or of the severity
    of --fail-on, or a graver one); 2 if a rule is wrong, whatever the others find.
    """
    from lundprobe_zarr.quality.check import qc as check
    from lundprobe_zarr.quality.check import require_severity
    from lundprobe_zarr.sql.worker import worker

    require_file("--html", html)
    worker().prepare()  # it starts while the dataset is opened
    report = check(cohort_where(dataset, where, storage_options), rules)
    if html is not None:
        _write_page(report, html, not no_pictures)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _show(report, dataset, html)
    if report.wrong:
        raise typer.Exit(WRONG_USAGE)
    if fail_on is not FailOn.never and report.breaks(require_severity(fail_on.value)):
        raise typer.Exit(FAILED)


def _write_page(report: QualityReport, html: Path, pictures: bool) -> None:
    from lundprobe_zarr.cli.verbosity import is_quiet

    def drawn(patient_id: str) -> None:
        if not is_quiet():
            typer.echo(f"{patient_id} drawn", err=True)  # standard output may be JSON

    html.parent.mkdir(parents=True, exist_ok=True)
    report.save_html(html, pictures, drawn)


def _show(report: QualityReport, dataset: str, html: Path | None) -> None:
    from lundprobe_zarr.cli.console import count, heading, listing, say, table

    outcomes = report.gravest_first()
    rows = [
        (o.rule.id, o.rule.severity, _result(o), str(o.checked), str(o.flagged or "–"))
        for o in outcomes
    ]
    table(("rule", "severity", "result", "checked", "flagged"), rows, ("checked", "flagged"))
    found = [(o.rule, f) for o in outcomes for f in o.findings]
    if found:
        heading(f"Findings: {len(found)}")
        lines = (f"{r.severity:7}  {f.patient_id}  {r.id}: {f.message}" for r, f in found)
        listing(lines, most=_SHOWN)
    for o in (o for o in outcomes if o.is_lacking):
        say(f"{o.rule.id}, {o.status}: {o.why}", "red" if o.status == "wrong" else "yellow")
    kept = sum(o.status == "passed" for o in outcomes)
    say()
    say(f"{count(len(report.cohort), 'patient')}: {kept} of {count(len(outcomes), 'rule')} kept.")
    if html is not None:
        say(f"Report: {html.resolve()}")
    elif found:
        say(f"A page with pictures: lundprobe-zarr qc {shlex.quote(dataset)} --html qc.html")


def _result(outcome: Outcome) -> str:
    return "kept" if outcome.status == "passed" else outcome.status


def check_against_paper(
    dataset: Dataset,
    show_sql: Annotated[bool, typer.Option("--sql", help="Show the SQL of each number.")] = False,
    as_json: AsJson = False,
    storage_options: StorageOptions = None,
) -> None:
    """Compare the numbers that the authors published with those of this copy.

    Exit status 0 whether they differ or not: a valid copy may differ from the published one.
    """
    from lundprobe_zarr.quality.paper import compared
    from lundprobe_zarr.sql.worker import worker

    worker().prepare()
    cohort = cohort_where(dataset, None, storage_options)
    rows = compared(cohort).to_pylist()
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _show_numbers(rows, cohort.manifest.synthetic, show_sql)


def _show_numbers(rows: list[dict[str, Any]], synthetic: bool, show_sql: bool) -> None:
    from lundprobe_zarr.cli.console import heading, say, table

    columns = ("what", "published", "here", "verdict")
    cells = [[*(row[c] or "–" for c in columns), row["detail"] or ""] for row in rows]
    table(("number", "published", "this copy", "verdict", ""), cells, ("published", "this copy"))
    if synthetic:
        say()
        say("This is a synthetic phantom: it is not meant to have the published numbers.", "yellow")
    other = [row for row in rows if row["why"]]
    if other:
        heading("Why they may differ")
        for why in dict.fromkeys(row["why"] for row in other):
            names = ", ".join(row["what"] for row in other if row["why"] == why)
            say(f"  {names}:")
            say(f"    {why}.")
    if show_sql:
        heading("SQL")
        for row in rows:
            say(f"-- {row['what']}")
            say(f"{row['sql']};")
