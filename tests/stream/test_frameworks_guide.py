"""docs/frameworks.md: every example runs, in order."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("torch")

_GUIDE = Path(__file__).parents[2] / "docs" / "frameworks.md"
_BLOCK = re.compile(r"<!-- run: (\w+) -->\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = dict(_BLOCK.findall(_GUIDE.read_text(encoding="utf-8")))


def run(names: list[str], folder: Path, dataset: Path, monkeypatch) -> dict:
    (folder / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(folder)
    space: dict = {}
    for name in names:
        exec(compile(BLOCKS[name], str(_GUIDE), "exec"), space)
    return space


def test_every_block_is_run():
    assert _GUIDE.read_text().count("```python") == len(BLOCKS) == 4


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # of MONAI 1.5, under NumPy 2
)
def test_a_u_net_of_monai_is_trained_and_its_masks_are_saved(tmp_path, dataset, monkeypatch):
    pytest.importorskip("monai")
    space = run(["monai", "unet", "inverse"], tmp_path, dataset, monkeypatch)
    assert len(space["losses"]) == 2
    assert all(0 < loss < 1 for loss in space["losses"])
    (saved,) = (tmp_path / "predictions").rglob("*_unet.nii.gz")
    image, whole = nib.load(saved), space["dataset"][0]["image"]
    assert image.shape == (*whole.shape[1:], 2)
    np.testing.assert_allclose(image.affine, whole.affine, rtol=0, atol=1e-5)


def test_torchio_samples_and_aggregates(tmp_path, dataset, monkeypatch):
    pytest.importorskip("torchio")
    space = run(["torchio"], tmp_path, dataset, monkeypatch)
    assert space["aggregator"].get_output_tensor().shape == space["whole"].image.shape
