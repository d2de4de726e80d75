"""The real nnU-Net reads what is exported; `make test-nnunet` installs it beside and runs this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.exchange.nnunet import export_nnunet

PLAN, FINGERPRINT = "nnUNetv2_plan_and_preprocess", "nnUNetv2_extract_fingerprint"

pytestmark = pytest.mark.skipif(
    shutil.which(PLAN) is None, reason="nnU-Net is not on the PATH: make test-nnunet"
)

KINDS: dict[str, dict[str, Any]] = {
    "labels": {"labels": ["CTVT_427", "Rectum", "Bladder"], "channels": ["T2w", "sCT"]},
    "regions": {"labels": ["CTVT_427", "PTVT_427", "Rectum", "BODY"], "regions": True},
    "ignore": {"labels": ["CTVT_427", "Rectum", "PenileBulb"], "missing": "ignore"},
    "both": {"labels": ["PTVT_427", "PenileBulb"], "missing": "ignore", "regions": True},
    "sct": {"labels": ["Rectum", "Bladder"], "channels": "sCT", "grid": "sct"},
}


def run(command: str, *arguments: object, home: Path) -> str:
    """Run a command of nnU-Net with its folders below `home`; return what it printed."""
    folders = {f"nnUNet_{f}": str(home / f) for f in ("raw", "preprocessed", "results")}
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    ran = subprocess.run(
        [command, *map(str, arguments)],
        env=os.environ | folders | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_nnunet_verifies_plans_and_preprocesses(kind, cohort: lp.Cohort, tmp_path):
    report = export_nnunet(cohort, tmp_path / "raw", 801, "Peer", folds=2, **KINDS[kind])
    verify = ("-d", 801, "--verify_dataset_integrity", "--no_pbar")
    printed = run(FINGERPRINT, *verify, "-np", 1, home=tmp_path)
    printed += run(PLAN, *verify, "-np", 1, "-npfp", 1, "-c", "3d_fullres", home=tmp_path)
    print(printed)
    assert printed.count("verify_dataset_integrity Done") == 2
    for complaint in ("Error", "Warning:", "WARNING", "mismatch", "Traceback"):
        assert complaint not in printed
    made = tmp_path / "preprocessed" / "Dataset801_Peer"
    plans = json.loads((made / "nnUNetPlans.json").read_text())
    (configuration,) = [plans["configurations"]["3d_fullres"]]
    schemes = {"T2w": "ZScoreNormalization", "sCT": "CTNormalization"}
    wanted = [schemes[c] for c in report.settings["channels"]]
    assert configuration["normalization_schemes"] == wanted
    patients = [n.patient_id for n in report.notes]
    cases = {f.name.removesuffix(".b2nd") for f in made.glob("*_3d_fullres/*.b2nd")}
    assert cases == {name for i in patients for name in (i, f"{i}_seg")}
    assert json.loads((made / "splits_final.json").read_text()) == report.folds
