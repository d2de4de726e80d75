"""The version of this package, for manifests and stores."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Installed version of lundprobe-zarr, or `0+unknown` in a tree that is not installed."""
    try:
        return version("lundprobe-zarr")
    except PackageNotFoundError:
        return "0+unknown"
