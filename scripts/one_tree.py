"""Lay out the package as it is installed, for tools that read files: build/tree/lundprobe_zarr.

The converter's sources stand in conversion/ and are installed as lundprobe_zarr.conversion. mypy
and import-linter follow folders, so they get a folder of links in which it stands there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "tree"


def lay_out() -> Path:
    """Make the tree again and return its folder, to be put on PYTHONPATH."""
    shutil.rmtree(TREE, ignore_errors=True)
    package = TREE / "lundprobe_zarr"
    package.mkdir(parents=True)
    for source in [*(ROOT / "lundprobe_zarr").iterdir(), ROOT / "conversion"]:
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    return TREE


if __name__ == "__main__":
    print(lay_out())
