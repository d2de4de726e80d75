"""docs/nnunet.md: every example runs, in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "nnunet.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_examples_run(cli, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, str(GUIDE), "exec"), namespace)
        elif language == "bash":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                ran = cli(*arguments)
                assert (program, ran.status) == ("lundprobe-zarr", 0), ran.err
    made = sorted(f.name for f in (tmp_path / "nnUNet_raw").iterdir())
    assert made == ["Dataset801_Organs", "Dataset802_Margins", "Dataset803_New"]
    folds = json.loads((tmp_path / "nnUNet_raw/Dataset802_Margins/splits_final.json").read_text())
    assert len(folds) == 2
    assert {language for language, _ in BLOCKS} == {"python", "bash", "text"}
