"""Rules that users add: read, merged, run; wrong ones are named and the others run."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from altered_tables import Copy

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.quality.outcome import Outcome
from lundprobe_zarr.quality.rules import Rule, rules_with, shipped_rules

DATA = Path(__file__).parents[1] / "data"
MINE = {
    "id": "mine",
    "severity": "warning",
    "title": "Rectums are small",
    "sql": "SELECT patient_id, volume_cc AS value, volume_cc > 100 AS flagged FROM clinical "
    "WHERE structure = 'Rectum'",
    "message": "{value:.1f} cm³",
}


def ran(cohort: lp.Cohort, **changes: Any) -> Outcome:
    """The outcome of one's own rule, with some of its fields changed."""
    off = [{"id": rule.id, "severity": "off"} for rule in shipped_rules()]
    (outcome,) = lp.qc(cohort, [*off, MINE | changes]).outcomes
    return outcome


@pytest.fixture(scope="module")
def cohort(dataset: Path) -> lp.Cohort:
    return lp.open_cohort(dataset)


def test_a_rule_of_ones_own_is_run_after_the_others(cohort: lp.Cohort) -> None:
    report = lp.qc(cohort, [MINE])
    last = report.outcomes[-1]
    assert last.rule.id == "mine"
    assert len(report.outcomes) == len(shipped_rules()) + 1
    volumes = cohort.sql("SELECT * FROM clinical WHERE structure = 'Rectum'").volume_cc
    assert last.flagged == (volumes > 100).sum() > 0
    assert last.checked == 4
    assert {value for value, _ in last.values} == {float(f"{v:.12g}") for v in volumes}
    table = report.table
    assert list(table) == ["rule", "severity", "patient_id", "message", "value", "limit"]
    mine = table[table.rule == "mine"]
    assert mine.message.tolist() == [f"{v:.1f} cm³" for v in mine.value]
    assert table.severity.tolist() == sorted(table.severity, key=["error", "warning", "info"].index)


def test_without_flagged_every_row_breaks_the_rule(cohort: lp.Cohort) -> None:
    found = ran(cohort, sql="SELECT patient_id FROM patients WHERE part = 'extended'", message="x")
    assert (found.status, found.checked, found.flagged) == ("flagged", 4, 1)
    found = ran(cohort, sql="SELECT patient_id FROM patients WHERE part = 'none'", message="x")
    assert found.status == "wrong"  # the value is none of part
    found = ran(cohort, sql="SELECT patient_id FROM patients WHERE source_bytes < 0", message="x")
    assert (found.status, found.checked) == ("passed", 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sql": "SELEC patient_id FROM patients"}, "syntax error"),
        ({"sql": "SELECT patient_id FROM patient"}, "no table 'patient'.*nearest: patients"),
        ({"sql": "SELECT patient_id, volume FROM clinical"}, "no column 'volume'.*volume_cc"),
        ({"sql": "SELECT patient_id FROM clinical WHERE structure = 'Recktum'"}, "nearest: Rectum"),
        ({"sql": "DELETE FROM patients"}, "not a SELECT"),
        ({"sql": "SELECT * FROM read_csv('/etc/passwd')"}, "read_csv"),
        ({"sql": "SELECT part FROM patients"}, "no column patient_id, but part"),
        ({"sql": "SELECT 1 AS patient_id"}, "patient_id has type int32; expected text"),
        ({"sql": "SELECT 'x' AS patient_id"}, "'x'; expected patients of the cohort"),
        ({"sql": "SELECT patient_id, 'a' AS value FROM patients"}, "value has type string"),
        ({"sql": "SELECT patient_id, 1 AS flagged FROM patients"}, "expected true or false"),
        ({"message": "{volume}"}, r"names \{volume\}, which its SQL does not select; it has pat"),
        ({"message": "{value.__class__}"}, "names {value.__class__}"),
        ({"message": "{value:999999999}"}, "expected such as .1f"),
        ({"message": "{patient_id:.1f}"}, "formats patient_id"),
        ({"message": "{value"}, "expected '}'"),
    ],
)
def test_a_wrong_rule_is_named_and_the_others_run(
    cohort: lp.Cohort, changes: dict[str, str], said: str
) -> None:
    off = [{"id": r.id, "severity": "off"} for r in shipped_rules() if r.id != "gaps"]
    report = lp.qc(cohort, [*off, MINE | changes])
    (wrong,) = report.wrong
    assert wrong.rule.id == "mine"
    assert re.search(said, str(wrong.why)), wrong.why
    assert [o.status for o in report.outcomes] == ["flagged", "wrong"]


def test_numbers_that_are_none_are_left_out(cohort: lp.Cohort) -> None:
    sql = "SELECT patient_id, 'inf'::DOUBLE AS value, NULL AS limit, true AS flagged FROM patients"
    found = ran(cohort, sql=sql, message="{limit}")
    assert found.values == ()
    assert {(f.value, f.limit, f.message) for f in found.findings} == {(None, None, "–")}


def test_a_table_that_the_dataset_lacks_says_what_to_run(tables: Copy) -> None:
    _forget(tables, "agreement")
    sql = "SELECT patient_id FROM agreement WHERE dice < 0.8"
    found = ran(tables.open(), sql=sql, message="x")
    assert found.status == "not evaluated"
    assert found.why == (
        f"the dataset has no table agreement; run `lundprobe-zarr measure {tables.folder}`"
    )
    assert lp.qc(tables.open(), [MINE | {"sql": sql}]).breaks("warning")
    _forget(tables, "slices")
    found = ran(tables.open(), sql="SELECT patient_id FROM slices", message="x")
    assert found.status == "not evaluated"
    assert f"finalise {tables.folder} --rebuild" in str(found.why)


def _forget(tables: Copy, table: str) -> None:
    """Take a table out of the manifest, as in a dataset that never had it."""
    manifest = json.loads((tables.folder / "lundprobe.json").read_text())
    del manifest["tables"][table]
    manifest.pop("self_sha256", None)
    (tables.folder / "lundprobe.json").write_text(json.dumps(manifest))


def test_a_column_that_an_older_dataset_lacks_says_what_to_run(tmp_path: Path) -> None:
    with tarfile.open(DATA / "schema-1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    report = lp.qc(lp.open_cohort(tmp_path))
    lacking = {o.rule.id: str(o.why) for o in report.outcomes if o.is_lacking}
    assert {"coverage", "ctv-in-ptv", "ptv-margin", "fiducials-in-ctv"} <= set(lacking)
    assert all("finalise" in why and "--rebuild" in why for why in lacking.values())
    assert not report.wrong
    assert report.breaks("error")
    assert any(o.status == "passed" for o in report.outcomes)


def test_a_part_of_the_patients_is_checked_alone(cohort: lp.Cohort) -> None:
    found = ran(cohort.where("part = 'extended'"))
    assert found.checked == 1


def test_a_file_of_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    own = MINE | {"sql": ["SELECT patient_id", "FROM patients"]}
    entries = [own, MINE | {"id": "gaps"}, {"id": "coverage", "severity": "off"}]
    path.write_text(json.dumps({"rules": entries}), encoding="utf-8-sig")
    rules = {rule.id: rule for rule in rules_with(path)}
    assert rules["mine"].sql == "SELECT patient_id\nFROM patients"
    assert rules["gaps"].title == MINE["title"]
    assert "coverage" not in rules
    assert len(rules) == len(shipped_rules())
    assert rules_with(None) is shipped_rules()
    assert rules_with([Rule.model_validate(own)])[-1] == rules["mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"rules\.json: not JSON"),
        ("[]", "not rules"),
        ('{"rule": []}', "not rules .*rules"),
        (json.dumps({"rules": [MINE | {"severity": "fatal"}]}), r"not rules \(mine: severity"),
        (json.dumps({"rules": [MINE, {"id": "x"}]}), r"not rules \(x: severity"),
        (json.dumps({"rules": [MINE | {"id": "a b"}]}), r"\(a b: id"),
        (json.dumps({"rules": [7]}), r"\(number 1"),
        (json.dumps({"rules": [MINE | {"sq": "x"}]}), "mine: sq"),
        (json.dumps({"rules": [MINE | {"sql": ""}]}), "mine: sql"),
        (json.dumps({"rules": [MINE, MINE]}), "two rules mine"),
        (json.dumps({"rules": [{"id": "gap", "severity": "off"}]}), "no rule 'gap'.*nearest: gaps"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        rules_with(path)
    with pytest.raises(UsageError, match="No such file"):
        rules_with(tmp_path / "none.json")
