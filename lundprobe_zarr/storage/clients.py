"""Choose the client that serves a location; ours for the web and S3 check what was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fsspec

from lundprobe_zarr.storage.urls import BY_HTTP, S3, WEB, is_chain


def open_files(target: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return fsspec's file system of the URL `target`, and the path there.

    Raises `ImportError` if what it needs is not installed, `ValueError` for an unknown protocol.
    """
    if is_chain(target):
        fs, root = fsspec.core.url_to_fs(target, **options)
        return fs, root
    protocol = target.partition("://")[0]
    # Not url_to_fs, for which `::` in a name begins another URL.
    kind = _client(protocol, target) or fsspec.get_filesystem_class(protocol)
    return kind(**kind._get_kwargs_from_urls(target) | options), kind._strip_protocol(target)


def _client(protocol: str, target: str) -> Any:
    if protocol in BY_HTTP:
        from lundprobe_zarr.storage.hub import HubFiles, is_hub

        if is_hub(target):
            return HubFiles
    if protocol in WEB:
        from lundprobe_zarr.storage.web import WebFiles

        return WebFiles
    if protocol in S3:
        from lundprobe_zarr.storage.s3 import BucketFiles

        return BucketFiles
    return None


def read_by_client(
    fs: Any, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], seconds: float
) -> list[Any]:
    """Return the bytes of every range by a file system itself, or the exception it raised.

    Ours take a time limit for each range, `seconds`. What fsspec runs in its own thread takes one
    for all, and lets go of those that have not ended.
    """
    rows = list(names), list(starts), list(stops)
    if getattr(fs, "takes_seconds", False):
        return list(fs.cat_ranges(*rows, on_error="return", seconds=seconds))
    limit = {"timeout": seconds} if "cat_ranges" in vars(fs) else {}
    try:
        return list(fs.cat_ranges(*rows, on_error="return", **limit))
    except TimeoutError as error:
        return [error] * len(names)
