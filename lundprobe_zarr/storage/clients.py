"""Which client of fsspec serves a place: for the web and S3 ours, which look at what was sent."""

from __future__ import annotations

from typing import Any

import fsspec

from lundprobe_zarr.storage.urls import S3, WEB, is_chain


def open_files(target: str, options: dict[str, Any]) -> tuple[Any, str]:
    """fsspec's file system of the URL `target`, and the place there.

    Raises `ImportError` if what it needs is not installed, `ValueError` for an unknown protocol.
    """
    if is_chain(target):
        fs, root = fsspec.core.url_to_fs(target, **options)
        return fs, root
    protocol = target.partition("://")[0]
    # Not url_to_fs, for which `::` in a name begins another URL.
    kind = _client(protocol) or fsspec.get_filesystem_class(protocol)
    return kind(**kind._get_kwargs_from_urls(target) | options), kind._strip_protocol(target)


def takes_seconds(fs: Any) -> bool:
    """Whether a file system reads ranges within a time limit for each, `seconds`: ours do.

    fsspec's own limit is one for all of them, and lets go of those that have not ended.
    """
    return bool(getattr(fs, "takes_seconds", False))


def _client(protocol: str) -> Any:
    if protocol in WEB:
        from lundprobe_zarr.storage.ranges import WebFiles

        return WebFiles
    if protocol in S3:
        from lundprobe_zarr.storage.s3 import BucketFiles

        return BucketFiles
    return None
