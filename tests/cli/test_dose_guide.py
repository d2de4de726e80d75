"""docs/dose.md: every example runs, in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from lundprobe_zarr.measures.constraints import constraints_of_text, shipped_sets
from lundprobe_zarr.measures.metrics import parse_metric

GUIDE = Path(__file__).parents[2] / "docs" / "dose.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_examples_run(cli, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, str(GUIDE), "exec"), namespace)
            continue
        assert language == "bash"
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            ran = cli(*arguments)
            assert (program, ran.status) == ("lundprobe-zarr", 0), ran.err
    made = {f.name for f in tmp_path.iterdir()} - {"my-dataset"}
    assert made == {"by-protocol.png", "metrics.csv", "curves.parquet", "dvh.png"}
    assert {language for language, _ in BLOCKS} == {"python", "bash"}


def test_every_metric_of_the_guide_parses():
    rows = re.findall(r"^\| (`[^|]+) \|.*\|$", TEXT, re.MULTILINE)
    named = [m for row in rows for m in re.findall(r"`([^`]+)`", row)]
    metrics = [m for m in named if m not in ("voxels", "table")]
    assert len(metrics) >= 11
    assert [parse_metric(m).text for m in metrics] == metrics


def test_the_guide_names_every_set():
    for name, text in shipped_sets().items():
        assert f"`{name}`" in TEXT
        assert constraints_of_text(json.dumps(json.loads(text)), name).name == name
