"""The examples of docs/service-api.md, run against a service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lundprobe_zarr.cohort import load_cohort, open_cohort

GUIDE = Path(__file__).parents[2] / "docs" / "service-api.md"
BLOCK = re.compile(r"<!-- run: (\w+) -->\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCK.findall(GUIDE.read_text()) if kind == language]


@pytest.fixture
def environment(served, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", served.token)


def test_the_python_examples(environment, dataset, capsys):
    names = {}
    for block in blocks("python"):
        exec(compile(block, str(GUIDE), "exec"), names)
    names["service"].close()
    assert names["page"]["num_rows_total"] > 0
    assert len(names["frame"]) == 9
    expected = open_cohort(dataset).where("protocol = 'newAcq'")
    assert names["chosen"]["patient_ids"] == expected.ids
    assert capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_examples_with_curl(environment, dataset, tmp_path):
    said = [
        subprocess.run(
            ["sh", "-ec", block],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in blocks("sh")
    ]
    assert len(said) == 3
    assert said[0].startswith('{"features":')
    assert said[1].startswith('"protocol","n"\n')
    chosen = load_cohort(tmp_path / "cohort.json", dataset)
    assert chosen == open_cohort(dataset).where("protocol = 'newAcq'")
