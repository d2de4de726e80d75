"""Let type checkers find the package in an editable install: run with that environment's Python.

    .venv/bin/python scripts/link_types.py

pip's editable install finds the package by a hook that only runs in Python; mypy and pyright read
folders. So a folder that holds a link to the package alone is put on the environment's path: the
whole checkout there would make `tests` and `conversion` importable from everywhere.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the folder with the link, and the `.pth` file that names it."""
    folder = Path(sys.prefix) / "lundprobe_zarr-types"
    folder.mkdir(exist_ok=True)
    link = folder / "lundprobe_zarr"
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT / "lundprobe_zarr", target_is_directory=True)
    site = Path(sysconfig.get_path("purelib"))
    (site / "lundprobe_zarr-types.pth").write_text(f"{folder}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
