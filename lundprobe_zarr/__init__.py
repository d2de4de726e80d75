"""LUND-PROBE as labelled, chunked, streamable Zarr with SQL cohort selection.

This module is the table of contents; nothing is computed here, and heavy libraries are imported
only by the name that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.vocabulary.version import package_version

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort, Patient, open_cohort
    from lundprobe_zarr.phantom import write_phantom

__all__ = ["Cohort", "LundProbeError", "Patient", "open_cohort", "write_phantom"]
__version__ = package_version()

_LAZY = {
    "Cohort": "lundprobe_zarr.cohort",
    "Patient": "lundprobe_zarr.cohort",
    "open_cohort": "lundprobe_zarr.cohort",
    "write_phantom": "lundprobe_zarr.phantom",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
