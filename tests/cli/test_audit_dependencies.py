"""The dependency audit fails on what others reach, and only then."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import audit_dependencies as audit


def record(name, *ids):
    vulns = [{"id": i, "fix_versions": ["9"]} for i in ids]
    return {"name": name, "version": "1", "vulns": vulns}


def test_a_vulnerability_of_the_service_fails():
    status, lines = audit.judge([record("uvicorn", "CVE-1"), record("idna")], ["uvicorn"])
    assert status == 1
    assert lines[0] == "extra serve: uvicorn 1: CVE-1, mended by 9"


def test_one_of_the_library_is_said():
    status, lines = audit.judge([record("tornado", "CVE-2")], ["uvicorn"])
    assert status == 0
    assert lines[0].startswith("library: tornado 1: CVE-2")


def test_without_an_answer_it_says_so():
    assert audit.judge(None, ["uvicorn"]) == (
        0,
        ["dependency audit: could not ask; nothing is known of vulnerabilities"],
    )
    skipped = [{"name": "uvicorn", "version": "1", "skip_reason": "not found"}]
    status, lines = audit.judge(skipped, ["uvicorn"])
    assert status == 0
    assert "could not ask about uvicorn" in lines[0]


def test_what_the_service_runs_on_is_found():
    found = audit.closure(audit.of_extra())
    assert {"starlette", "uvicorn", "anyio", "pyjwt", "cryptography"} <= set(found)
    assert "zarr" not in found
    assert "zarr" in audit.closure(["lundprobe-zarr[serve]"])
