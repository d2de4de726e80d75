"""The version of this package, for manifests and stores."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the installed version of lundprobe-zarr; `0+unknown` if it is not installed."""
    try:
        return version("lundprobe-zarr")
    except PackageNotFoundError:
        return "0+unknown"


#: How to get a newer version. The package is on no package index.
UPGRADE = "upgrade with `pip install .` in a newer checkout of lundprobe-zarr"


def with_extra(extra: str) -> str:
    """Return how to install this package with an extra, for messages."""
    return f"`pip install '.[{extra}]'` in the checkout of lundprobe-zarr"
