"""The HTML page: whole by itself, everything escaped, pictures, and what it says."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from altered_tables import Copy

import lundprobe_zarr as lp
from lundprobe_zarr.quality.histogram import histogram
from lundprobe_zarr.quality.outcome import Outcome
from lundprobe_zarr.quality.rules import Rule

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onclick='x' &amp;"
#: Elements without an end.
VOID = {"meta", "img", "br", "line", "rect"}


class Page(HTMLParser):
    """A page's elements, checked to be nested, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(report: lp.QualityReport, folder: Path, **options: Any) -> Page:
    report.save_html(folder / "qc.html", **options)
    return Page((folder / "qc.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(dataset: Path) -> lp.QualityReport:
    return lp.qc(lp.open_cohort(dataset))


@pytest.fixture(scope="module")
def page(report: lp.QualityReport, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(report, tmp_path_factory.mktemp("page"))


def test_it_needs_no_other_file_and_runs_nothing(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/jpeg;base64,"))
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])
    style = page.text
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_every_link_leads_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    links = {str(a["href"]).removeprefix("#") for a in page.all("a")}
    assert links <= set(ids)
    assert len(links) > 30


def test_it_says_what_was_found_what_was_kept_and_by_which_sql(
    page: Page, report: lp.QualityReport
) -> None:
    for outcome in report.outcomes:
        assert outcome.rule.title in page.text
        assert outcome.rule.sql in page.text
        assert outcome.rule.citation in page.text
        assert all(f.message in page.text for f in outcome.findings)
    assert "Synthetic phantom" in page.text
    assert "4 patients (1 base newAcq, 2 base oldAcq, 1 extended newAcq)" in page.text
    assert "n = 4 values of 4 patients, 4 flagged (outlined); dashed: 2.5." in page.text
    assert "MRI pixel size along x (mm)" in page.text


def test_patients_with_warnings_have_a_picture(page: Page, report: lp.QualityReport) -> None:
    table = report.table
    warned = set(table[table.severity != "info"].patient_id)
    assert 0 < len(warned) < 4
    pictures = page.all("img")
    assert {str(p["alt"]).split(" of ")[1].split()[0] for p in pictures} == warned
    data = base64.b64decode(str(pictures[0]["src"]).partition(",")[2])
    assert data[:3] == b"\xff\xd8\xff"
    assert len(data) < 40_000


def test_without_pictures_no_voxel_is_read(tables: Copy, tmp_path: Path) -> None:
    drawn: list[str] = []
    found = page_of(lp.qc(tables.open()), tmp_path, pictures=False, progress=drawn.append)
    assert found.all("img") == []
    assert drawn == []
    assert "Flagged patients" in found.text


def test_a_damaged_store_costs_its_picture_alone(copied: Path, tmp_path: Path) -> None:
    report = lp.qc(lp.open_cohort(copied))
    table = report.table
    first, *_ = sorted(set(table[table.severity == "warning"].patient_id))
    shutil.rmtree(copied / "patients" / f"{first}.zarr")
    drawn: list[str] = []
    found = page_of(report, tmp_path, progress=drawn.append)
    assert "No picture: the store cannot be read" in found.text
    assert len(found.all("img")) == len(drawn) - 1


def test_whatever_a_rule_or_a_dataset_says_is_text(tables: Copy, tmp_path: Path) -> None:
    tables.change("patients", lambda row: row.update(findings=[EVIL]))
    evil = {"id": "evil", "severity": "error", "title": EVIL, "citation": EVIL, "quantity": EVIL}
    sql = (
        f"SELECT patient_id, 1 AS value, '{EVIL.replace(chr(39), chr(39) * 2)}' AS x FROM patients"
    )
    wrong = evil | {"id": "wrong", "sql": f"SELECT {EVIL}", "message": EVIL}
    report = lp.qc(tables.open(), [evil | {"sql": sql, "message": "{x}", "unit": EVIL}, wrong])
    assert [o.rule.id for o in report.wrong] == ["wrong"]
    found = page_of(report, tmp_path, pictures=False)
    assert not {"script", "img"} & {tag for tag, _ in found.elements}
    assert not any("onerror" in a or "onclick" in a for _, a in found.elements)
    assert found.text.count(EVIL) > 10
    assert "Rules not evaluated" in found.text


def test_a_page_of_patients_says_that_it_is_that(tables: Copy, tmp_path: Path) -> None:
    manifest = json.loads((tables.folder / "lundprobe.json").read_text())
    manifest |= {"synthetic": False, "access": "Ask <first>."}
    del manifest["self_sha256"]
    (tables.folder / "lundprobe.json").write_text(json.dumps(manifest))
    cohort = tables.open().where("n_fiducials >= 0")
    found = page_of(lp.qc(cohort), tmp_path, pictures=False)
    assert "This page holds patient data. Ask <first>." in found.text
    assert "where n_fiducials >= 0" in found.text


def test_none_flagged_is_a_page_too(dataset: Path, tmp_path: Path) -> None:
    nobody = lp.open_cohort(dataset).where("source_bytes < 0")
    report = lp.qc(nobody)
    assert report.table.empty
    assert not report.breaks("info")
    assert "0 patients" in page_of(report, tmp_path).text


class TestHistogram:
    def outcome(self, values: list[tuple[float, bool]], limits: tuple[float, ...] = ()) -> Outcome:
        rule = Rule(
            id="a", severity="info", title="t", sql="s", message="m", quantity="q", unit="Gy"
        )
        return Outcome(rule, "flagged", checked=3, values=tuple(values), limits=limits)

    def bars(self, drawn: str) -> list[tuple[str, float, float]]:
        pattern = r'<rect class="(\w+)" x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"/>'
        return [(name, float(x), float(h)) for name, x, h in re.findall(pattern, drawn)]

    def test_bars_are_counts_and_flagged_ones_stand_on_the_others(self) -> None:
        values = [(1.0, False)] * 6 + [(1.0, True)] * 3 + [(4.0, True)]
        drawn = histogram(self.outcome(values, (2.0,)))
        bars = self.bars(drawn)
        assert [name for name, _, _ in bars] == ["kept", "flagged", "flagged"]
        kept, flagged, alone = (height for _, _, height in bars)
        assert kept == pytest.approx(2 * flagged, rel=0.01)
        assert alone == pytest.approx(flagged / 3, rel=0.02)
        assert drawn.count('class="limit"') == 1
        assert "q (Gy)" in drawn
        assert "n = 10 values of 3 patients, 4 flagged (outlined); dashed: 2." in drawn

    @pytest.mark.parametrize("value", [0.0, 42.7, -1e6, 1e-9])
    def test_equal_values_are_one_bar(self, value: float) -> None:
        ((name, x, _),) = self.bars(histogram(self.outcome([(value, False)] * 2)))
        assert name == "kept"
        assert 200 < x < 320

    def test_few_are_seen_beside_many(self) -> None:
        bars = self.bars(histogram(self.outcome([(0.0, False)] * 100_000 + [(9.0, True)])))
        assert bars[1][2] == 2.0

    def test_limits_of_each_patient_are_not_drawn(self) -> None:
        drawn = histogram(self.outcome([(1.0, False)], tuple(map(float, range(9)))))
        assert 'class="limit"' not in drawn

    def test_without_values_or_a_name_there_is_none(self) -> None:
        assert histogram(self.outcome([])) == ""
        named = self.outcome([(1.0, True)])
        unnamed = Outcome(named.rule.model_copy(update={"quantity": ""}), "flagged", 1)
        assert histogram(unnamed) == ""


def test_many_findings_are_folded_and_linked_from_the_top(simulated: Path, tmp_path: Path) -> None:
    cohort = lp.open_cohort(simulated)
    rules = tmp_path / "rules.json"
    rule = {
        "id": "everybody",
        "severity": "info",
        "title": "Nobody is here",
        "sql": "SELECT patient_id FROM patients",
        "message": "is here",
    }
    rules.write_text(json.dumps({"rules": [rule]}))
    lp.qc(cohort, rules=rules).save_html(tmp_path / "qc.html", pictures=False)
    text = (tmp_path / "qc.html").read_text()
    page = Page(text)
    assert "Flagged patients: 467" in page.text
    assert "447 more patients, with fewer findings" in page.text
    article = text.split('id="rule-everybody"')[1].split("</article>")[0]
    at_once, folded = article.split('<details class="more">')
    assert (at_once.count('class="id"'), folded.count('class="id"')) == (15, 185)
    assert "185 more of 467" in folded
    assert "… and 267 more, in the JSON form." in folded
    cards = text.split('id="patients"')[1].split('<details class="more">')[0]
    assert cards.count("<article") == 20
    anchors = {i["id"] for _, i in page.elements if "id" in i}
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= anchors
