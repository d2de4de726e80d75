"""The version of this package, for manifests and stores."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Installed version of lundprobe-zarr, or `0+unknown` in a tree that is not installed."""
    try:
        return version("lundprobe-zarr")
    except PackageNotFoundError:
        return "0+unknown"


#: How to get a newer version: the package is on no index.
UPGRADE = "upgrade with `pip install .` in a newer checkout of lundprobe-zarr"


def with_extra(extra: str) -> str:
    """How to install this package with one of its extras, for messages."""
    return f"`pip install '.[{extra}]'` in the checkout of lundprobe-zarr"
