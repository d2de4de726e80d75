"""`measure` and `convert --measure`, as commands: what they print and their exit status."""

from __future__ import annotations

import shutil

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.schema.tables import COMPARED


def test_convert_can_measure_and_measure_skips_what_is_done(cli, phantom_source, tmp_path):
    (patient,) = (p.name for p in (phantom_source / "extendedPart").iterdir() if p.is_dir())
    out = tmp_path / "out"
    ran = cli("convert", phantom_source, out, "--patients", patient, "--measure")
    assert ran.status == 0, ran.err
    for said in ("1 patient to measure.", f"{patient} measured", "1 measured, 0 skipped"):
        assert said in ran.out
    assert len(open_cohort(out).table("agreement")) == 192
    ran = cli("measure", out)
    assert ran.status == 0, ran.err
    assert "Nothing to measure" in ran.out
    assert "0 measured, 1 skipped (measured before, unchanged), 0 failed" in ran.out
    query = ran.out.partition("Next: lundprobe-zarr ")[2].strip()
    assert query.startswith(f"query {out} 'SELECT pair, avg(dice)")


def test_of_an_unmeasured_dataset_finalise_says_what_to_run(cli, dataset, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(dataset, out, ignore=shutil.ignore_patterns(*COMPARED))
    (out / "lundprobe.json").unlink()
    ran = cli("finalise", out)
    assert ran.status == 0, ran.err
    assert "Without the tables agreement and uncertainty: 1 patient not measured" in ran.out
    assert f"lundprobe-zarr measure {out}" in ran.out
    ran = cli("query", out, "SELECT * FROM agreement")
    assert ran.status == 2
    assert f"lundprobe-zarr measure {out}" in ran.err


def test_mistakes_and_their_status(cli, copied, tmp_path):
    base = open_cohort(copied).where("part = 'base'").ids[0]
    unknown = "newAcq_00000000000000ff"
    for arguments, status, said in (
        ((tmp_path / "none",), 3, "no patient's store"),
        ((copied, "--part", "3/2"), 2, "part 3/2"),
        ((copied, "--part", "x"), 2, "expected i/N"),
        ((copied, "--patients", base), 2, "no segmentations of network or observers"),
        ((copied, "--patients", unknown), 2, f"no patient {unknown}"),
        ((copied, "--workers", 0), 2, "--workers 0"),
    ):
        ran = cli("measure", *arguments)
        assert ran.status == status, ran.err
        assert said in ran.err
    ran = cli("measure", copied, "--part", "2/2")
    assert ran.status == 0
    assert "Next, once every share is done: lundprobe-zarr finalise" in ran.out
