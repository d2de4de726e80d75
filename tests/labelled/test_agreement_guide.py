"""docs/agreement.md: every example runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_GUIDE = Path(__file__).parents[2] / "docs" / "agreement.md"
_BLOCK = re.compile(r"<!-- run: (\w+) -->\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = dict(_BLOCK.findall(_GUIDE.read_text(encoding="utf-8")))


def test_every_block_is_run():
    assert _GUIDE.read_text().count("```python") == len(BLOCKS) == 6


@pytest.mark.parametrize("name", BLOCKS)
def test_examples_run(name, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[name], str(_GUIDE), "exec"), {})
