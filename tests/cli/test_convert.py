"""`convert`, with real workers: its plan, its progress, its outcome, and how it is broken off."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from processes import start

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.phantom import write_phantom


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, to see whether anything was touched."""
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
    }


@pytest.fixture
def source(phantom_source: Path, tmp_path: Path) -> Path:
    """A source tree of this test's own."""
    return Path(shutil.copytree(phantom_source, tmp_path / "source"))


def damage(source: Path) -> tuple[str, Path]:
    """Cut a file of one patient short: the patient's id and the file."""
    patient = sorted((source / "basePart").iterdir())[0]
    file = patient / "MR_StorT2" / "dose_interpolated.nii.gz"
    file.write_bytes(file.read_bytes()[:-20])
    return patient.name, file


def test_converts_reports_and_skips(cli, source, tmp_path):
    bad, file = damage(source)
    report = tmp_path / "report.json"
    ran = cli("convert", source, tmp_path / "out", "--workers", 2, "--report", report)
    assert ran.status == 1, ran.err
    assert "4 patients to convert" in ran.out
    assert re.search(rf"^\[\d/4\] {bad} failed .*dose_interpolated", ran.out, re.MULTILINE)
    failures = ran.out.partition("Failed: 1 patient")[2]
    for said in (bad, "dose_interpolated.nii.gz", "expected", "fetch the file again"):
        assert said in failures
    assert "3 converted, 0 skipped (converted before, unchanged), 1 failed" in ran.out
    assert "\x1b" not in ran.out + ran.err
    assert ran.err == ""
    outcome = json.loads(report.read_text())
    assert outcome["counts"] == {"converted": 3, "skipped": 0, "failed": 1}
    assert len(open_cohort(tmp_path / "out")) == 3

    shutil.rmtree(source / file.relative_to(source).parts[0] / bad)
    before = tree(tmp_path / "out" / "patients")
    ran = cli("convert", source, tmp_path / "out", "--workers", 1)
    assert ran.status == 0
    assert "Nothing to convert: 3 patients" in ran.out
    assert tree(tmp_path / "out" / "patients") == before


def test_shares_are_put_together_by_finalise(cli, phantom_source, tmp_path):
    for share in ("1/2", "2/2"):
        ran = cli("convert", phantom_source, tmp_path / "out", "--part", share)
        assert ran.status == 0, ran.err
        assert f"lundprobe-zarr finalise {tmp_path / 'out'}" in ran.out
        assert not (tmp_path / "out" / "lundprobe.json").exists()
    assert cli("finalise", tmp_path / "out").status == 0
    assert len(open_cohort(tmp_path / "out")) == 4


def test_dry_run_writes_nothing(cli, source, tmp_path):
    (source / "basePart" / "notes").mkdir()
    patients = sorted((source / "basePart").glob("*Acq_*"))
    (patients[0] / "MR_StorT2" / "extra.nii.gz").write_bytes(b"x")
    (patients[1] / "MR_StorT2" / "image.nii.gz").unlink()
    before = tree(tmp_path)
    ran = cli("convert", source, tmp_path / "out", "--dry-run")
    assert ran.status == 0
    assert tree(tmp_path) == before
    for said in (
        "patients  4",
        "PenileBulb: 1 patient",
        "MR_StorT2/image.nii.gz: 1 patient",
        f"basePart/{patients[0].name}/MR_StorT2/extra.nii.gz",
        "basePart/notes",
        f"Would fail: 1\n  {patients[1].name}: ",
        "3 patients converted",
        "1 patient failed",
        "Nothing was written",
    ):
        assert said in ran.out


def test_dry_run_knows_what_was_converted_and_touches_nothing(cli, copied, source):
    os.utime(next((source / "basePart").rglob("image.nii.gz")))  # same contents, another time
    before = tree(copied)
    ran = cli("convert", source, copied, "--dry-run")
    assert "4 patients skipped: converted before and unchanged" in ran.out
    assert tree(copied) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part", "5"], "--part '5'; expected i/N"),
        (["--part", "0/4"], "part 0/4"),
        (["--patients", ""], "--patients '': no id in it; expected ID[,ID...]"),
        (["--patients", " ,"], "no id in it"),
        (["--report", "/"], "--report /: a folder; expected the name of a file"),
        (["--report", f"{__file__}/r.json"], "is a file; expected a folder"),
        (["--patients", "newAcq_x"], "no patient newAcq_x"),
        (["--workers", "0"], "--workers 0; expected at least 1"),
        (["--precision", "vague"], "vague"),
        (["--dry-run", "--report", "r.json"], "--dry-run writes nothing"),
    ],
)
def test_nonsense_is_wrong_usage(cli, phantom_source, tmp_path, options, said):
    ran = cli("convert", phantom_source, tmp_path / "out", *options)
    assert ran.status == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["nonsense", "foo://10.0.0.1:1", "tcp://127.0.0.1:{port}"])
def test_an_address_where_no_scheduler_is(
    cli, phantom_source, tmp_path, address, web_port, monkeypatch
):
    monkeypatch.setattr("lundprobe_zarr.conversion.run.cluster._TIMEOUT_SECONDS", 1.0)
    ran = cli(
        "convert", phantom_source, tmp_path / "out", "--scheduler", address.format(port=web_port)
    )
    assert ran.status == 2
    assert "expected the address of a running dask scheduler" in ran.err
    assert list((tmp_path / "out" / ".conversion" / "runs").iterdir()) == []


@pytest.fixture
def web_port() -> Iterator[int]:
    """Port of a server that speaks HTTP and no word of dask's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.daemon_threads = True  # one waits for a line that never comes
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_who_left_the_source_and_what_was_passed_over_are_said(cli, copied, source):
    gone = sorted((source / "basePart").iterdir())[0]
    shutil.rmtree(gone)
    (source / "basePart" / "Patient7").mkdir()
    for options in ((), ("--dry-run",)):
        ran = cli("convert", source, copied, *options)
        assert ran.status == 0
        absent = "1 patient in the dataset is not in this source; it stays as it is:"
        assert f"{absent}\n  {gone.name}\n" in ran.out
        passed = ran.out.partition("Skipped, not converted: 1")[2]
        named = "basePart/Patient7: not a patient id; expected oldAcq_ or newAcq_ and 16"
        assert named in passed
        assert named not in ran.out.partition("Skipped, not converted")[0]
    others = sorted(p.name for p in (source / "basePart").glob("*Acq_*"))
    assert absent not in cli("convert", source, copied, "--patients", others[0]).out
    ran = cli("convert", source, copied, "--dry-run", "--overwrite", "--precision", "compact")
    assert ran.status == 2
    assert f"{gone.name} (standard): not in the source" in ran.err


def test_dry_run_looks_at_the_first_bytes(cli, source, tmp_path):
    first, second, third = sorted((source / "basePart").iterdir())
    shutil.copy(third / "sCT" / "mask_BODY.nii.gz", third / "MR_StorT2" / "mask_BODY.nii.gz")
    (first / "MR_StorT2" / "mask_BODY.nii.gz").write_bytes(b"")
    (second / "sCT" / "image.nii.gz").write_text("<html>404</html>")
    ran = cli("convert", source, tmp_path / "out", "--dry-run")
    assert "Would fail: 3\n" in ran.out
    assert f"{third.name}/MR_StorT2/mask_BODY.nii.gz: (" in ran.out
    assert "expected the geometry of MR_StorT2/image.nii.gz" in ran.out
    assert f"{first.name}/MR_StorT2/mask_BODY.nii.gz: empty; expected .nii.gz" in ran.out
    assert f"{second.name}/sCT/image.nii.gz: not gzip: starts with b'<h'" in ran.out
    assert "1 patient converted" in ran.out
    assert not (tmp_path / "out").exists()


def test_killed_outright_a_run_holds_nobody_up_and_alive_it_does(cli, phantom_source, tmp_path):
    command = ("convert", phantom_source, tmp_path / "out")
    process = start(*command, "--workers", 1, cwd=tmp_path)
    assert process.stdout is not None
    try:
        assert "4 patients to convert" in process.stdout.readline()
        ran = cli(*command)
        assert ran.status == 2
        assert f"another conversion is running there, process {process.pid} on " in ran.err
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert len(list((tmp_path / "out" / ".conversion" / "runs").iterdir())) == 1
    ran = cli(*command)
    assert ran.status == 0, ran.err
    assert list((tmp_path / "out" / ".conversion" / "runs").iterdir()) == []
    assert len(open_cohort(tmp_path / "out")) == 4


def test_a_source_that_is_none(cli, phantom_source, tmp_path):
    ran = cli("convert", tmp_path / "nowhere", tmp_path / "out")
    assert ran.status == 2
    assert "no such folder" in ran.err
    (tmp_path / "empty" / "basePart").mkdir(parents=True)
    ran = cli("convert", tmp_path / "empty", tmp_path / "out")
    assert ran.status == 2
    assert "no patient in basePart/ or extendedPart/" in ran.err
    ran = cli("convert", phantom_source, phantom_source / "out")
    assert ran.status == 2
    assert "overlap" in ran.err


def test_destinations_that_the_dry_run_refuses_too(cli, phantom_source, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for place, said in [
        ("", "path or URL is empty"),
        (tmp_path, "has README.md"),
        (tmp_path / "README.md", "is a file; expected a folder or nothing"),
        (phantom_source / "out", "overlap"),
    ]:
        for options in ([], ["--dry-run"]):
            ran = cli("convert", phantom_source, place, *options)
            assert ran.status == 2
            assert said in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_patients_one_by_one_or_separated_by_commas(cli, phantom_source, tmp_path):
    ids = [p.name for p in sorted((phantom_source / "basePart").iterdir())]
    ran = cli(
        "convert", phantom_source, tmp_path / "out", "--dry-run",
        "--patients", f"{ids[0]},{ids[1]}", "--patients", ids[2],
    )  # fmt: skip
    assert "patients  3\n" in ran.out


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree of eight base patients."""
    home = tmp_path_factory.mktemp("eight") / "source"
    return write_phantom(home, patients=8, extended=0)


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [
        (signal.SIGINT, 130, ("--workers", 1)),
        (signal.SIGTERM, 143, ("--workers", 1)),
        (signal.SIGINT, 130, ()),
    ],
)
def test_a_signal_stops_in_order_and_the_same_command_continues(
    cli, eight, tmp_path, number, status, workers
):
    command = ("convert", eight, tmp_path / "out")
    process = start(*command, *workers, cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/8]"):
            break
    # As a terminal does: to the process and all it has started.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert re.search(r"Stopped: [1-7] of 8 patients done", out)
    assert "The same command continues" in out
    assert err == ("Stopping: ending the workers …\n" if workers else "Stopping …\n")
    assert [p.name for p in (tmp_path / "out" / "patients").iterdir() if p.name[0] == "."] == []
    assert_ends(process.pid)
    ran = cli(*command)
    assert ran.status == 0
    assert "0 failed" in ran.out
    assert len(open_cohort(tmp_path / "out")) == 8


def assert_ends(group: int) -> None:
    """No process of the group is left after a moment."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of group {group} are still there")
