"""Output folders of exports: outside of datasets, and nothing in them is replaced."""

from __future__ import annotations

from pathlib import Path

from lundprobe_zarr.dataset.opening import dataset_around
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.local import require_folder


def require_outside(out: Path) -> None:
    """Raise `UsageError` if an output folder is a file, or in a dataset."""
    require_folder(out, f"output folder {out}")
    if root := dataset_around(out):
        raise UsageError(
            f"output folder {out} is within the dataset {root}",
            expected="a folder outside of datasets",
            remedy="choose another output folder",
        )


def require_new(folder: Path) -> None:
    """Raise `UsageError` if a folder that an export makes exists already."""
    if folder.exists():
        raise UsageError(
            f"{folder} exists already",
            expected="a new folder",
            remedy="choose another output folder or remove it",
        )
