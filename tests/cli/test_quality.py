"""`qc` and `check-against-paper`: what they print, write and return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BROKEN = {
    "id": "mine",
    "severity": "error",
    "title": "There is no one",
    "sql": "SELECT patient_id FROM patients",
    "message": "is there\x1b[2J",
}


def rules(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": [BROKEN | changes]}))
    return path


def test_the_phantom_is_free_of_errors(cli, dataset, tmp_path):
    ran = cli("qc", dataset, "--html", tmp_path / "new" / "qc.html", "-q")
    assert ran.status == 0
    assert "gaps" in ran.out
    assert "19 of 28 rules kept" in ran.out
    assert ran.err == ""
    page = (tmp_path / "new" / "qc.html").read_text()
    assert "data:image/jpeg" in page
    ran = cli("qc", dataset, "--html", tmp_path / "qc.html", "--no-pictures")
    assert ran.status == 0
    assert "data:image/jpeg" not in (tmp_path / "qc.html").read_text()


@pytest.mark.parametrize(
    ("severity", "fail_on", "status"),
    [
        ("error", None, 1),
        ("warning", None, 0),
        ("error", "never", 0),
        ("info", "info", 1),
        (None, "warning", 1),  # of the shipped rules, `gaps`
    ],
)
def test_exit_status_is_by_severity(cli, dataset, tmp_path, severity, fail_on, status):
    added = ("--rules", rules(tmp_path, severity=severity)) if severity else ()
    asked = ("--fail-on", fail_on) if fail_on else ()
    assert cli("qc", dataset, *added, *asked).status == status


def test_a_wrong_rule_is_wrong_usage_and_the_others_are_told(cli, dataset, tmp_path):
    ran = cli("qc", dataset, "--rules", rules(tmp_path, sql="SELECT x FROM patients"))
    assert ran.status == 2
    assert "mine, wrong: no column 'x'" in ran.out
    assert "gaps: Bladder" in ran.out
    ran = cli("qc", dataset, "--rules", rules(tmp_path, severity="x"))
    assert ran.status == 2
    assert "rules.json: not rules (mine: severity" in ran.err


def test_codes_of_a_terminal_are_written_out(cli, dataset, tmp_path):
    ran = cli("qc", dataset, "--rules", rules(tmp_path))
    assert "mine: is there\\x1b[2J" in ran.out


def test_json_is_all_that_is_printed(cli, dataset, tmp_path):
    ran = cli("qc", dataset, "--json", "--html", tmp_path / "qc.html", "--where", "part = 'base'")
    found = json.loads(ran.out)
    assert found["patients"] == 3
    assert found["synthetic"] is True
    by_id = {rule["id"]: rule for rule in found["rules"]}
    assert by_id["gaps"]["status"] == "flagged"
    assert by_id["gaps"]["sql"].startswith("SELECT")
    assert {"rule", "severity", "patient_id", "message", "value", "limit"} == set(
        found["findings"][0]
    )
    assert "drawn" in ran.err


def test_no_dataset_and_no_place_for_the_page(cli, dataset, tmp_path):
    assert cli("qc", tmp_path).status == 3
    assert cli("qc", dataset, "--html", tmp_path).status == 2
    assert cli("check-against-paper", tmp_path).status == 3


def test_numbers_of_the_paper(cli, dataset):
    ran = cli("check-against-paper", dataset, "--sql")
    assert ran.status == 0
    assert "synthetic phantom" in ran.out
    assert "434 in all, for a base part of 432" in ran.out
    assert "-- patients in all\nSELECT count(*) AS value\nFROM patients;" in ran.out
    rows = json.loads(cli("check-against-paper", dataset, "--json").out)
    assert {row["verdict"] for row in rows} == {"same", "differs"}
    assert "SELECT" not in cli("check-against-paper", dataset).out
