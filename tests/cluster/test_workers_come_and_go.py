"""A conversion on a dask cluster whose processes are killed and added while it is at work."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from dask_processes import PATIENCE_S, Cluster, content, drafts, start, wait_for

from lundprobe_zarr.cohort import open_cohort


def test_workers_killed_and_added_change_nothing_in_the_result(
    cluster: Cluster, phantom_source: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = cluster.worker(), cluster.worker()
    conversion = start(
        "lundprobe_zarr", "convert", phantom_source, out, "--scheduler", cluster.address,
        "--report", tmp_path / "report.json", cwd=tmp_path,
    )  # fmt: skip
    for worker in (first, second):
        wait_for(lambda worker=worker: drafts(out, worker), conversion)
        worker.kill()
        cluster.worker()
    printed, errors = conversion.communicate(timeout=PATIENCE_S)
    assert conversion.returncode == 0, printed + errors
    assert errors == ""

    report = json.loads((tmp_path / "report.json").read_text())
    patients = Counter(p["patient_id"] for p in report["patients"])
    assert patients == Counter(open_cohort(dataset).patients.patient_id)
    assert {p["status"] for p in report["patients"]} == {"converted"}
    assert Counter(open_cohort(out).patients.patient_id) == patients
    assert content(out) == content(dataset)
    assert not list((out / "patients").glob(".*")), "no leftovers, dead or not"


def test_without_its_scheduler_a_conversion_says_so_and_is_taken_up_by_the_next(
    cluster: Cluster, phantom_source: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    worker = cluster.worker()
    command = ("lundprobe_zarr", "convert", phantom_source, out)
    conversion = start(*command, "--scheduler", cluster.address, cwd=tmp_path)
    wait_for(lambda: list(out.glob("patients/*.zarr")) and drafts(out, worker), conversion)
    cluster.scheduler.kill()
    _, errors = conversion.communicate(timeout=PATIENCE_S)
    assert conversion.returncode == 1
    assert f"error: --scheduler {cluster.address}: the connection was lost; expected" in errors
    assert errors.count("\n") == 1, "no traceback"
    worker.kill()

    again = start(*command, cwd=tmp_path)
    printed, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0
    assert re.search(r"^[1-3] patients? to convert, .*; [1-3] converted before", printed)
    assert content(out) == content(dataset)
