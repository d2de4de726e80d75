"""The quality report as one HTML page: no script, no other file, everything escaped."""

from __future__ import annotations

import base64
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.quality.histogram import histogram
from lundprobe_zarr.quality.outcome import Finding, Outcome, Outcomes
from lundprobe_zarr.quality.rules import SEVERITIES, Severity
from lundprobe_zarr.vocabulary.version import package_version

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

_LOG = logging.getLogger("lundprobe_zarr.quality")

#: Nothing may be fetched or run, whatever a rule or finding holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
#: Most findings of a rule that the page lists; all are in the table.
_LISTED = 200
#: Findings of a rule, and patients, that are there at once and in print; others are folded away.
_OPEN_FINDINGS, _OPEN_PATIENTS = 15, 20
#: Severities whose patients are shown with a picture.
_PICTURED: tuple[Severity, ...] = ("error", "warning")

Broken = dict[str, list[tuple[Severity, Finding]]]


#: Called with each patient whose picture was drawn.
Progress = Callable[[str], None]


def report_html(report: Outcomes, pictures: bool, progress: Progress | None = None) -> str:
    """Return the page, with pictures of patients who have warnings or errors if wanted."""
    title = f"Quality report: {report.cohort.manifest.name}"
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    outcomes = report.gravest_first()
    flagged = [o for o in outcomes if o.status == "flagged"]
    body = [
        *_head(report),
        *_cards(report),
        *_contents(outcomes),
        *_overview(outcomes),
        *_section("Broken rules", [_rule(o) for o in flagged], "broken"),
        *_patients(report.cohort, flagged, pictures, progress),
        *_section("Rules not evaluated", [_rule(o) for o in outcomes if o.is_lacking], "lacking"),
        *_section("Rules kept", [_rule(o) for o in outcomes if o.status == "passed"], "kept"),
        *_section(
            "Nothing to check", [_rule(o) for o in outcomes if o.status == "nothing to check"], ""
        ),
        *_foot(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _head(report: Outcomes) -> Iterator[str]:
    manifest = report.cohort.manifest
    table = report.cohort.dataset.columns("patients", ["patient_id", "part", "protocol"])
    ids = set(report.cohort.ids)
    kinds = Counter((r["part"], r["protocol"]) for r in table.to_pylist() if r["patient_id"] in ids)
    counts = ", ".join(f"{n} {part} {protocol}" for (part, protocol), n in sorted(kinds.items()))
    yield "<header><h1>Quality report</h1>"
    yield (
        f'<p class="faint">{escape(manifest.name)} · {_patients_text(len(ids))}'
        f"{escape(f' ({counts})' if counts else '')} · {datetime.now(UTC).date().isoformat()}</p>"
    )
    for step in report.cohort.selection:
        yield f'<p class="faint">where <code>{escape(step)}</code></p>'
    yield "</header>"
    if manifest.synthetic:
        yield (
            '<p class="banner">Synthetic phantom: no number or picture here comes from a patient. '
            "A small phantom has coarser grids than the protocol, which rules on grids say.</p>"
        )
    else:
        yield f'<p class="banner">This page holds patient data. {escape(manifest.access)}</p>'


def _patients_text(number: int) -> str:
    return f"{number} patient{'' if number == 1 else 's'}"


def _cards(report: Outcomes) -> Iterator[str]:
    grave: dict[str, set[str]] = {severity: set() for severity in SEVERITIES}
    for outcome in report.outcomes:
        grave[outcome.rule.severity] |= {f.patient_id for f in outcome.findings}
    lacking = sum(o.is_lacking for o in report.outcomes)
    kept = sum(o.status == "passed" for o in report.outcomes)
    cards = [("patients", len(report.cohort), "")]
    cards += [(f"patients with {_NOUNS[s]}", len(grave[s]), s if grave[s] else "") for s in grave]
    cards += [(f"of {len(report.outcomes)} rules kept", kept, "passed")]
    cards += [("rules not evaluated", lacking, "warning" if lacking else "")]
    yield '<div class="cards">'
    for text, number, kind in cards:
        yield f'<div class="card"><b class="{kind}">{number}</b>{escape(text)}</div>'
    yield "</div>"


def _contents(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield links to the sections, with what is in each."""
    flagged = [o for o in outcomes if o.status == "flagged"]
    sections = (
        ("broken", "Broken rules", len(flagged)),
        ("patients", "Flagged patients", len({f.patient_id for o in flagged for f in o.findings})),
        ("lacking", "Rules not evaluated", sum(o.is_lacking for o in outcomes)),
        ("kept", "Rules kept", sum(o.status == "passed" for o in outcomes)),
    )
    links = [f'<a href="#{at}">{title}: {n}</a>' for at, title, n in sections if n]
    yield f'<nav aria-label="Contents">{" · ".join(links)}</nav>'


_NOUNS: dict[str, str] = {"error": "errors", "warning": "warnings", "info": "remarks"}


def _overview(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield '<h2>Rules</h2><div class="scroll"><table><thead><tr><th>rule</th><th>severity</th>'
    yield '<th>result</th><th class="number">patients checked</th>'
    yield '<th class="number">flagged</th></tr></thead><tbody>'
    for o in outcomes:
        result = '<span class="passed">kept</span>' if o.status == "passed" else escape(o.status)
        yield (
            f'<tr><td><a href="#rule-{o.rule.id}">{escape(o.rule.title)}</a></td>'
            f"<td>{_badge(o.rule.severity)}</td><td>{result}</td>"
            f'<td class="number">{o.checked}</td><td class="number">{o.flagged or "–"}</td></tr>'
        )
    yield "</tbody></table></div>"


def _badge(severity: str) -> str:
    return f'<span class="badge {severity}">{severity}</span>'


def _section(title: str, articles: Sequence[str], anchor: str) -> Iterator[str]:
    if articles:
        yield f'<h2 id="{anchor}">{escape(title)}</h2>' if anchor else f"<h2>{escape(title)}</h2>"
        yield from articles


def _rule(outcome: Outcome) -> str:
    rule, is_broken = outcome.rule, outcome.status == "flagged"
    count = f"{outcome.flagged} flagged of {_patients_text(outcome.checked)} checked"
    parts = [
        f'<article id="rule-{rule.id}" class="{"" if is_broken else "kept-rule"}"><header>',
        f"{_badge(rule.severity)}<h3>{escape(rule.title)}</h3><code>{rule.id}</code>"
        f'<span class="faint">{count}</span></header>',
        f'<p class="{"error" if outcome.status == "wrong" else ""}">{escape(outcome.why)}</p>'
        if outcome.why
        else "",
        f'<p class="citation">{escape(rule.citation)}</p>' if rule.citation else "",
        histogram(outcome),
        _findings(outcome.findings),
        f"<details{' open' if is_broken or outcome.is_lacking else ''}><summary>SQL</summary>"
        f"<pre>{escape(rule.sql)}</pre></details></article>",
    ]
    return "\n".join(part for part in parts if part)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    lines = [
        f'<tr><td class="id"><a href="#{escape(f.patient_id)}">{escape(f.patient_id)}</a></td>'
        f"<td>{escape(f.message)}</td></tr>"
        for f in findings[:_LISTED]
    ]
    more = len(findings) - _LISTED
    note = f'<p class="faint">… and {more} more, in the JSON form.</p>' if more > 0 else ""
    first, rest = _rows(lines[:_OPEN_FINDINGS]), _rows(lines[_OPEN_FINDINGS:])
    count = min(len(findings), _LISTED) - _OPEN_FINDINGS
    return first + _folded(rest, f"{count} more of {len(findings)}" if rest else "") + note


def _rows(lines: Sequence[str]) -> str:
    table = f'<div class="scroll"><table><tbody>{"".join(lines)}</tbody></table></div>'
    return table if lines else ""


def _folded(content: str, title: str) -> str:
    """Return what is shown only when somebody asks for it, and not printed; "" if it is none."""
    if not content:
        return ""
    return f'<details class="more"><summary>{escape(title)}</summary>{content}</details>'


def _patients(
    cohort: Cohort, flagged: Iterable[Outcome], pictures: bool, progress: Progress | None
) -> Iterator[str]:
    """Yield a card for each patient who breaks a rule, those with the gravest first."""
    broken: Broken = defaultdict(list)
    for outcome in flagged:
        for finding in outcome.findings:
            broken[finding.patient_id].append((outcome.rule.severity, finding))
    if not broken:
        return
    yield '<h2 id="patients">Flagged patients</h2>'
    if pictures:
        yield (
            '<p class="faint">T2w slice through the middle of the CTV. Outlines: CTV blue, PTV '
            "blue dashed, rectum green, bladder yellow, penile bulb and genitalia (dashed) purple, "
            "femoral heads orange (right dashed). Patients with remarks alone have no picture.</p>"
        )
    centres = _centres(cohort) if pictures else {}
    cards = []
    for patient_id in sorted(broken, key=lambda i: _gravity(broken[i])):
        findings = broken[patient_id]
        picture = ""
        if pictures and any(severity in _PICTURED for severity, _ in findings):
            picture = _picture(cohort, patient_id, centres.get(patient_id))
            if progress is not None:
                progress(patient_id)
        cards.append(_card(patient_id, findings, picture))
    yield _grid(cards[:_OPEN_PATIENTS])
    rest = len(cards) - _OPEN_PATIENTS
    yield _folded(_grid(cards[_OPEN_PATIENTS:]), f"{rest} more patients, with fewer findings")


def _grid(cards: Sequence[str]) -> str:
    return f'<div class="patients">{"".join(cards)}</div>' if cards else ""


def _gravity(findings: Sequence[tuple[Severity, Finding]]) -> tuple[int, ...]:
    counts = Counter(severity for severity, _ in findings)
    return tuple(-counts[severity] for severity in SEVERITIES)


def _card(patient_id: str, findings: Sequence[tuple[Severity, Finding]], picture: str) -> str:
    items = [
        f'<li><span class="{severity}">{severity}:</span> {escape(finding.message)}</li>'
        for severity, finding in findings
    ]
    return (
        f'<article id="{escape(patient_id)}">{picture}<div class="said">'
        f"<h3><code>{escape(patient_id)}</code></h3><ul>{''.join(items)}</ul></div></article>"
    )


def _centres(cohort: Cohort) -> dict[str, list[float]]:
    """Return the middle voxel (z, y, x) of each patient's CTV on the MRI grid, from the tables."""
    found = cohort.sql_table(
        "SELECT patient_id, bbox_start, bbox_stop FROM clinical "
        "WHERE structure = 'CTVT_427' AND bbox_start IS NOT NULL"
    )
    return {
        row["patient_id"]: [
            (start + stop - 1) / 2
            for start, stop in zip(row["bbox_start"], row["bbox_stop"], strict=True)
        ]
        for row in found.to_pylist()
    }


def _picture(cohort: Cohort, patient_id: str, centre: Sequence[float] | None) -> str:
    from lundprobe_zarr.figures.thumbnail import slice_jpeg

    try:
        picture = slice_jpeg(cohort.location, patient_id, centre)
    except DatasetError as error:  # a report on odd patients has to bear damaged stores
        _LOG.warning("%s: no picture: %s", patient_id, error)
        return '<p class="said error">No picture: the store cannot be read; run validate.</p>'
    data = base64.b64encode(picture).decode("ascii")
    alt = escape(f"axial T2w slice of {patient_id} with clinical structures")
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'


def _foot(report: Outcomes) -> Iterator[str]:
    manifest = report.cohort.manifest
    content = manifest.content.sha256 if manifest.content else "not known"
    yield '<footer class="faint">'
    yield f"<p>Content {escape(content)}, precision {escape(str(manifest.precision))}.</p>"
    yield f"<p>Cite {escape(manifest.citation)}.</p>"
    yield (
        f"<p>Made by lundprobe-zarr {escape(package_version())} from tables of "
        f"{escape(manifest.converter)}, schema {manifest.schema_version}. “Not evaluated”: the "
        "dataset lacks what the rule reads. “Flagged” patients break the rule; those who were not "
        "checked lack what it is about.</p></footer>"
    )
