"""`token` and `audit` on the command line, and the options of `serve` that cannot work."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime, timedelta

import pytest

from lundprobe_zarr.cli.token import COMMANDS
from lundprobe_zarr.service.access.access_file import read_access
from lundprobe_zarr.service.access.audit import Audit, Visit
from lundprobe_zarr.service.access.callers import token_sha256

PATIENT = "oldAcq_0123456789abcdef"


@pytest.fixture
def access(tmp_path):
    return tmp_path / "folder" / "access.json"


def test_examples_of_help_run_in_order(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, _, example in COMMANDS:
        help_ = cli("token", name, "--help")
        assert f"Example: lundprobe-zarr {example}" in " ".join(help_.out.split())
        ran = cli(*shlex.split(example))
        assert ran.status == 0, f"{example}: {ran.err}"
    assert cli("token").status == 2


def test_add_prints_the_token_alone_once(cli, access):
    ran = cli("token", "add", "reader-1", "--access", access)
    assert ran.status == 0
    token = ran.out.removesuffix("\n")
    assert token.startswith("lp_")
    assert token.split() == [token]
    assert token not in ran.err
    (kept,) = read_access(access).tokens
    assert kept.sha256 == token_sha256(token)
    assert access.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in access.parent.iterdir()] == ["access.json"]
    listed = cli("token", "list", "--access", access)
    assert token not in listed.out
    assert kept.sha256 not in cli("token", "list", "--access", access, "--format", "json").out


def test_what_is_asked_for_is_given(cli, access):
    arguments = ["--email", "reader-1@example.org", "--dataset", "a/b", "--dataset", "c/d"]
    arguments += ["--kind", "tables", "--expires", "90d", "--terms-accepted", "--requests", 4]
    arguments += ["--bytes-per-day", "50GB", "--sql-seconds", 10]
    assert cli("token", "add", "reader-1", "--access", access, *arguments).status == 0
    (made,) = read_access(access).tokens
    assert (made.email, made.datasets, made.kinds) == (
        "reader-1@example.org",
        ("a/b", "c/d"),
        ("tables",),
    )
    assert made.limits.model_dump() == {
        "requests": 4,
        "bytes_per_day": 50 * 10**9,
        "sql_seconds": 10.0,
    }
    now = datetime.now(UTC)
    assert timedelta(days=89, hours=23) < made.expires - now <= timedelta(days=90)
    assert made.terms_accepted == made.created
    assert now - made.created < timedelta(minutes=1)
    shown = cli("token", "list", "--access", access).out
    for text in (
        "reader-1 <reader-1@example.org>",
        "a/b, c/d",
        "tables only",
        "4 at a time",
        "50 GB a day",
    ):
        assert text in shown


def test_a_day_is_good_to_its_end(cli, access):
    assert cli("token", "add", "a", "--access", access, "--expires", "2999-12-31").status == 0
    (made,) = read_access(access).tokens
    assert made.expires == datetime(3000, 1, 1, tzinfo=UTC)


def test_an_operator_has_data_only_if_it_is_said(cli, access):
    for name, more in (("a", ()), ("b", ("--kind", "tables")), ("c", ("--dataset", "x/y"))):
        assert cli("token", "add", name, "--access", access, "--operator", *more).status == 0
    found = {t.name: (t.operator, t.datasets) for t in read_access(access).tokens}
    assert found == {"a": (True, ()), "b": (True, None), "c": (True, ("x/y",))}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--expires", "soon"), "a span such as 90d"),
        (("--expires", "2020-01-01"), "this is over"),
        (("--expires", "0d"), "this is over"),
        (("--dataset", "standard"), "OWNER/NAME"),
        (("--email", "reader-1"), "no e-mail address"),
        (("--bytes-per-day", "much"), "a size such as"),
        (("--bytes-per-day", "0"), "greater than or equal to 1"),
        (("--requests", "0"), "--requests"),
        (("--sql-seconds", "-1"), "greater than 0"),
        (("--kind", "all"), "--kind"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(cli, access, arguments, said):
    ran = cli("token", "add", "reader-1", "--access", access, *arguments)
    assert ran.status == 2
    assert said in ran.err
    assert ran.out == ""
    assert not access.exists()


@pytest.mark.parametrize("name", ["", " a", "a\nb", "anyone", "x" * 201])
def test_a_name_that_logs_cannot_have(cli, access, name):
    ran = cli("token", "add", name, "--access", access)
    assert ran.status == 2
    assert ran.out == ""


def test_a_name_is_used_once(cli, access):
    assert cli("token", "add", "reader-1", "--access", access).status == 0
    assert cli("token", "revoke", "reader-1", "--access", access).status == 0
    again = cli("token", "add", "Reader-1", "--access", access)
    assert again.status == 2
    assert "revoked, and keeps its name" in again.err


def test_revoke_by_name_or_id(cli, access):
    for name in ("reader-1", "reader-2"):
        cli("token", "add", name, "--access", access)
    first, second = read_access(access).tokens
    assert cli("token", "revoke", "reader-1", "--access", access).out == "Revoked reader-1.\n"
    assert cli("token", "revoke", second.id, "--access", access).out == "Revoked reader-2.\n"
    when = read_access(access).tokens[0].revoked
    assert cli("token", "revoke", first.id, "--access", access).status == 0
    assert read_access(access).tokens[0].revoked == when, "when it was first revoked"
    unknown = cli("token", "revoke", "ana", "--access", access)
    assert unknown.status == 2
    assert "reader-1" in unknown.err
    assert cli("token", "list", "--access", access).out.count("revoked") == 2


def test_sign_ins(cli, access):
    assert cli("token", "grant", "Reader-1@example.org", "--access", access).status == 0
    assert cli("token", "grant", "group:physics", "--access", access).status == 0
    for wrong in ("reader-1", "group:", "reader-1@example.org"):
        assert cli("token", "grant", wrong, "--access", access).status == 2
    assert [s.name for s in read_access(access).sign_ins] == [
        "Reader-1@example.org",
        "group:physics",
    ]
    assert cli("token", "revoke", "group:physics", "--access", access).status == 0


def test_a_file_that_others_may_read_is_refused(cli, access):
    cli("token", "add", "reader-1", "--access", access)
    access.chmod(0o644)
    for command in (("list",), ("add", "reader-2"), ("revoke", "reader-1")):
        ran = cli("token", *command, "--access", access)
        assert ran.status == 2
        assert f"chmod 600 {access}" in ran.err


def test_a_damaged_file_is_not_replaced(cli, access):
    access.parent.mkdir()
    access.write_text("{")
    access.chmod(0o600)
    ran = cli("token", "add", "reader-1", "--access", access)
    assert ran.status == 2
    assert "damaged" in ran.err
    assert access.read_text() == "{"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--access", "none.json"), "token add NAME --access FILE"),
        (("--host", "0.0.0.0"), "--access FILE"),
        (("--host", "0.0.0.0", "--public"), "--certificate and --key"),
        (("--public-url", "example.org"), "--public-url"),
        (("--certificate", "x"), "one without the other"),
        (("--trusted-proxy", "nginx"), "--trusted-proxy nginx"),
        (("--oidc", "oidc.json"), "give --access FILE too"),
        (("--oidc", "oidc.json", "--access", "access.json"), "--trusted-proxy ADDRESS"),
        (("--access-log", "loud"), "--access-log"),
        (("--audit", "."), "--audit"),
        (("--name", "standard"), "OWNER/NAME"),
        (("--host", "203.0.113.77", "--public", "--certificate", "c", "--key", "k"), "No such"),
    ],
)
def test_options_of_serve_that_cannot_work(cli, dataset, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    cli("token", "add", "reader-1", "--access", "access.json")
    (tmp_path / "oidc.json").write_text('{"proxy": {}}')
    ran = cli("serve", dataset, "--port", 0, "--state", "state", *arguments)
    assert ran.status == 2
    assert said in ran.err


def test_audit_sums_up_and_answers_sql(cli, tmp_path):
    log = Audit(tmp_path / "audit.jsonl")
    for caller, path in (
        ("reader-1", f"patients/{PATIENT}.zarr/zarr.json"),
        ("reader-2", "README.md"),
    ):
        visit = Visit("GET", f"/datasets/a/b/resolve/main/{path}", "192.0.2.1")
        visit.caller, visit.dataset, visit.path = caller, "a/b", path
        visit.status, visit.sent = 200, 1000
        log.write(visit)
    ran = cli("audit", tmp_path / "audit.jsonl")
    assert ran.status == 0
    assert "2 rows from 2 requests" in ran.out
    assert PATIENT in ran.out
    found = json.loads(cli("audit", tmp_path / "audit.jsonl", "--format", "json").out)
    assert [(r["caller"], r["patient_id"], r["content"], r["bytes"]) for r in found] == [
        ("reader-1", PATIENT, "voxels", 1000),
        ("reader-2", None, "tables", 1000),
    ]
    sql = "SELECT caller, date_trunc('day', time) AS day FROM audit WHERE bytes > 10 ORDER BY 1"
    out = tmp_path / "out.csv"
    ran = cli("audit", tmp_path / "audit.jsonl", "--sql", sql, "--output", out)
    assert ran.status == 0, ran.err
    assert out.read_text().splitlines()[0] == "caller,day"
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT * FROM patients", "no table 'patients'"),
        ("SELECT * FROM read_csv('/etc/passwd')", "not available"),
        ("DROP TABLE audit", "not a SELECT"),
        ("SELECT nothing FROM audit", "nothing"),
    ],
)
def test_audit_reads_its_table_alone(cli, tmp_path, sql, said):
    (tmp_path / "audit.jsonl").write_text("")
    ran = cli("audit", tmp_path / "audit.jsonl", "--sql", sql)
    assert ran.status == 2
    assert said in ran.err


def test_audit_of_damaged_and_missing_logs(cli, tmp_path):
    (tmp_path / "audit.jsonl").write_text('{"time": "20\n')
    ran = cli("audit", tmp_path / "audit.jsonl")
    assert ran.status == 0
    assert f"{tmp_path / 'audit.jsonl'}: line 1" in ran.err
    assert cli("audit", tmp_path / "none.jsonl").status == 2
