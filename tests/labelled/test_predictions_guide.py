"""docs/predictions.md: its Python runs in order, and its commands are those of the program."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from lundprobe_zarr.cli.app import app

_GUIDE = Path(__file__).parents[2] / "docs" / "predictions.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = _BLOCK.findall(_GUIDE.read_text(encoding="utf-8"))


def test_the_guide_runs(dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, str(_GUIDE), "exec"), namespace)
    frame = namespace["frame"]
    assert set(frame["b_source"]) == {"unet-v1", "threshold"}
    patient = namespace["patient"].patient_id
    masks = Path("OUT-of-guide") / f"basePart/{patient}/MR_StorT2/predictions/unet-v1"
    CliRunner().invoke(
        app, ["export", "my-dataset", patient, "OUT-of-guide", "--predictions", "predictions"]
    )
    home = Path("nnunet/predicted")
    home.mkdir(parents=True)
    masks.rename(home / patient)
    lines = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    assert len(lines) == 4
    for line in lines:
        program, *words = shlex.split(line.replace("PATIENT_ID", patient))
        assert program == "lundprobe-zarr"
        if words[0] == "view":  # runs until it is ended
            continue
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 0, f"{line}: {ran.output}"
    assert Path("agreement.parquet").stat().st_size
