"""`lundprobe-zarr dvh`: what it prints, writes and draws, and what it says of wrong usage."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import lundprobe_zarr as lp

EXTENDED = "newAcq_cba26d19714d0247"
METRICS = "D98%,D0.03cc,V38.43Gy[cc],HI"


def test_metrics_of_a_patient(cli, dataset):
    ran = cli("dvh", dataset, EXTENDED, "--metrics", METRICS, "--format", "json")
    rows = json.loads(ran.out)
    expected = lp.dvh(lp.open_cohort(dataset)[EXTENDED], metrics=METRICS.split(","))
    assert [r["structure"] for r in rows] == expected.structure.tolist()
    assert [r["D98%"] for r in rows] == expected["D98%"].tolist()
    assert rows[0]["observer"] is None
    table = cli("dvh", dataset, EXTENDED, "--metrics", METRICS)
    head = table.out.splitlines()[0].split()
    assert head[-6:] == ["volume_cc", "covered_pct", *METRICS.split(",")]
    assert not {"fold", "observer", "part"} & set(head)
    assert table.out.splitlines()[-1] == "9 rows"


def test_metrics_of_a_cohort_from_the_table(cli, dataset, tmp_path):
    out = tmp_path / "new" / "dvh.parquet"
    ran = cli("dvh", dataset, "--method", "table", "--output", out)
    assert ran.status == 0
    assert ran.out.startswith("Wrote 34 rows to ")
    written = pq.read_table(out)
    assert written.column_names[-5:] == ["D98%", "D50%", "D2%", "mean", "V95%"]
    assert set(written["patient_id"].to_pylist()) == set(lp.open_cohort(dataset).ids)
    ran = cli(
        *("dvh", dataset, "--where", "part = 'extended'", "--grid", "mri", "--format", "csv"),
        *("--sources", "observer, nnunet", "--structures", "Rectum", "--metrics", "mean"),
    )
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert len(rows) == 9
    assert {r["observer"] for r in rows} == {"", "obsB", "obsC", "obsD", "obsE"}


def test_curves(cli, dataset):
    ran = cli(
        *("dvh", dataset, EXTENDED, "--curves", "--structures", "PenileBulb", "--step-gy", "0.5"),
        *("--format", "csv"),
    )
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    expected = lp.dvh(lp.open_cohort(dataset)[EXTENDED], "PenileBulb", step_gy=0.5)
    assert [float(r["dose_gy"]) for r in rows] == expected.dose.values.tolist()
    assert [float(r["cumulative_cc"]) for r in rows] == expected.cumulative_cc[0].values.tolist()
    assert {r["structure"] for r in rows} == {"PenileBulb"}


def test_plan_checks(cli, dataset, tmp_path):
    ran = cli("dvh", dataset, "--method", "table", "--constraints", "icru")
    assert ran.status == 0
    assert ran.out.count("pass") == 8
    assert "reason" not in ran.out.splitlines()[0]
    file = tmp_path / "ours.json"
    document = {
        "name": "ours",
        "constraints": [
            {"structure": "PenileBulb", "metric": "mean", "limit": "<= 1 Gy", "citation": "x"}
        ],
    }
    file.write_text(json.dumps(document))
    ran = cli("dvh", dataset, "--constraints", file, "--format", "json")
    assert sorted(r["status"] for r in json.loads(ran.out)) == ["fail", "fail", "fail", "missing"]


def test_a_picture(cli, dataset, tmp_path):
    out = tmp_path / "dvh.png"
    ran = cli("dvh", dataset, "--method", "table", "--structures", "Rectum", "--plot", out)
    assert ran.out == f"Drew 4 segmentations into {out}.\n"
    assert out.read_bytes().startswith(b"\x89PNG")
    out.unlink()
    both = cli(
        *("dvh", dataset, EXTENDED, "--structures", "Rectum", "--metrics", "mean", "--plot", out),
        *("--volume", "cc"),
    )
    assert out.exists()
    assert "Drew 1 segmentation into" in both.out
    assert "1 row" in both.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((EXTENDED, "--where", "true"), "a patient and --where; expected one of them"),
        (("--curves", "--metrics", "mean"), "expected one of them"),
        (("--metrics", "D98"), "nearest: D98%, D98cc"),
        (("--metrics", ","), "no name in it"),
        (("--structures", "Rektum"), "nearest: Rectum"),
        (("--structures", ""), "no name in it"),
        (("--sources", "observer"), "choose the mri grid"),
        (("--by", "protocol"), "--by protocol without --plot"),
        (("--plot", "picture.pdf"), "does not end in .png"),
        (("--constraints", "icru83"), "nearest: icru"),
        (("newAcq_0000000000000000",), "no patient 'newAcq_0000000000000000'"),
        (("--where", "protocl = 'newAcq'"), "nearest: protocol"),
    ],
)
def test_wrong_usage(cli, dataset, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    ran = cli("dvh", dataset, *arguments)
    assert ran.status == 2
    assert said in ran.err
    assert not ran.out
    assert not list(tmp_path.iterdir())


def test_a_missing_structure_of_a_patient(cli, dataset: Path):
    lacking = lp.open_cohort(dataset).where("missing_PenileBulb")[0].patient_id
    ran = cli("dvh", dataset, lacking, "--structures", "PenileBulb")
    assert ran.status == 2
    assert f"patient {lacking} lacks clinical PenileBulb on the sct grid" in ran.err
