"""The packages of the extra `dicom`, which most other modules here import."""

from __future__ import annotations

from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.vocabulary.version import with_extra


def require_packages() -> None:
    """Require the packages that write DICOM. Raises `MissingPackageError`."""
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"the package {error.name} is not installed", remedy=with_extra("dicom")
        ) from error
