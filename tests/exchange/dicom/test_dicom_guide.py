"""docs/dicom.md: every example runs, and its tables say what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from dicom_written import Written

from lundprobe_zarr.cli import main
from lundprobe_zarr.exchange.dicom.names import ROIS

GUIDE = (Path(__file__).parents[3] / "docs" / "dicom.md").read_text(encoding="utf-8")
PATIENT = "newAcq_cba26d19714d0247"
BASH = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def test_every_example_runs(extended: Written, dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    assert (len(BASH), len(PYTHON)) == (1, 1)
    program, *arguments = shlex.split(BASH[0].replace(PATIENT, extended.patient_id))
    assert program == "lundprobe-zarr"
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    capsys.readouterr()
    exec(compile(PYTHON[0].replace(PATIENT, extended.patient_id), "docs/dicom.md", "exec"), {})
    assert "CT_sCT_on_MRI 12 0." in capsys.readouterr().out
    assert (tmp_path / "clinic" / extended.patient_id / "RTDOSE.dcm").exists()


def test_names_of_tg263_are_those_written():
    paragraph = GUIDE[GUIDE.index("With `--tg263`") : GUIDE.index("after AAPM Report 263")]
    named = re.findall(r"`([^`]+)`", paragraph)
    assert named[1:] == [roi.tg263 for roi in ROIS.values()]


def test_files_named_are_those_written(extended):
    table = GUIDE[GUIDE.index("| file | object") : GUIDE.index("**Rounding.**")]
    patterns = [
        re.sub("<[^>]+>", "*", p) for p in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    ]
    found = {f for p in patterns for f in extended.home.glob(p.replace("0001", "*"))}
    assert found == {f for f in extended.home.rglob("*") if f.is_file()}
