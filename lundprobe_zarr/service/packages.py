"""The packages of the extra `serve`, which all other modules of the service import."""

from __future__ import annotations

from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.vocabulary.version import with_extra


def require_packages() -> None:
    """Require the packages of the service. Raises `MissingPackageError`."""
    try:
        import jwt  # noqa: F401
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"the package {error.name} is not installed", remedy=with_extra("serve")
        ) from error
