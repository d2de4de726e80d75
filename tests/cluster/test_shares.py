"""Shares of a job array: processes that know nothing of each other but the folders they share."""

from __future__ import annotations

from pathlib import Path

from dask_processes import PATIENCE_S, content, start


def test_shares_of_a_job_array_at_once_make_the_dataset_of_one_run(
    phantom_source: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("lundprobe_zarr", "convert", phantom_source, out, "--part")
    shares = [start(*command, f"{n}/4", cwd=tmp_path) for n in (1, 2, 3, 4)]
    for share in shares:
        printed, errors = share.communicate(timeout=PATIENCE_S)
        assert share.returncode == 0, printed + errors
        assert "1 converted, 0 skipped" in printed
    finalise = start("lundprobe_zarr", "finalise", out, cwd=tmp_path)
    printed, errors = finalise.communicate(timeout=PATIENCE_S)
    assert finalise.returncode == 0, printed + errors
    assert content(out) == content(dataset)
    assert list((out / ".conversion" / "runs").iterdir()) == []
