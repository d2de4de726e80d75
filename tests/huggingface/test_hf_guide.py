"""docs/huggingface.md: every example runs; the training loop learns, from an S3 server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_GUIDE = Path(__file__).parents[2] / "docs" / "huggingface.md"
_BLOCK = re.compile(r"<!-- run: (\w+) -->\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = dict(_BLOCK.findall(_GUIDE.read_text(encoding="utf-8")))


def test_every_block_is_run():
    assert set(BLOCKS) == {"plain", "both", "handles", "saving", "training"}
    assert _GUIDE.read_text().count("```python") == len(BLOCKS)


@pytest.mark.parametrize("name", ["plain", "both", "handles", "saving"])
def test_examples_run(name, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[name], str(_GUIDE), "exec"), {})


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loop_learns_from_a_bucket(bucket, workers):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    _, options, traffic = bucket
    namespace = {"storage_options": options, "workers": workers}
    exec(compile(BLOCKS["training"], str(_GUIDE), "exec"), namespace)
    with traffic.counted() as asked:
        losses = namespace["main"]()
    assert len(losses) == 3 * (3 * 8 // 4)
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert any("/c/" in r.path and r.range for r in asked)
    assert not any("mri/dose" in r.path for r in asked)
