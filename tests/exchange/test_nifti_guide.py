"""docs/nifti.md: every command runs, and the Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lundprobe_zarr.cli import main

_GUIDE = Path(__file__).parents[2] / "docs" / "nifti.md"
_BLOCK = re.compile(r"<!-- run: (\w+) -->\n\n```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = dict(_BLOCK.findall(_GUIDE.read_text(encoding="utf-8")))


def test_every_block_is_run():
    assert _GUIDE.read_text().count("```bash") == len(BLOCKS) == 4


def test_python_runs(dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    [text] = _PYTHON.findall(_GUIDE.read_text(encoding="utf-8"))
    exec(compile(text, _GUIDE, "exec"), {})
    assert list((tmp_path / "rectum").rglob("mask_Rectum.nii.gz"))


@pytest.mark.parametrize("name", BLOCKS)
def test_commands_run(name, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    for line in BLOCKS[name].splitlines():
        program, *arguments = shlex.split(line)
        assert program == "lundprobe-zarr"
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, line
        assert list((tmp_path / arguments[2 + (name == "patient")]).rglob("*.nii.gz"))
