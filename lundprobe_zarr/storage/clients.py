"""Choose the client that serves a location; ours for the web and S3 check what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fsspec

from lundprobe_zarr.storage.urls import BY_HTTP, S3, WEB, is_chain

#: Options that a signed URL respects. With others, such as keys of encryption or a requester who
#: pays, the client makes every request.
_RESPECTED = frozenset(
    ("key", "secret", "token", "anon", "profile", "endpoint_url", "region_name",
     "max_pool_connections", "signature_version", "retries", "connect_timeout", "read_timeout")
)  # fmt: skip


def open_files(target: str, options: dict[str, Any]) -> tuple[Any, str]:
    """fsspec's file system of the URL `target`, and the place there.

    Raises `ImportError` if what it needs is not installed, `ValueError` for an unknown protocol.
    """
    if is_chain(target):
        fs, root = fsspec.core.url_to_fs(target, **options)
        return fs, root
    protocol = target.partition("://")[0]
    # Not url_to_fs, for which `::` in a name begins another URL.
    kind = _client(protocol, target) or fsspec.get_filesystem_class(protocol)
    return kind(**kind._get_kwargs_from_urls(target) | options), kind._strip_protocol(target)


def takes_seconds(fs: Any) -> bool:
    """Whether a file system reads ranges within a time limit for each, `seconds`: ours do.

    fsspec's own limit is one for all of them, and lets go of those that have not ended.
    """
    return bool(getattr(fs, "takes_seconds", False))


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


def range_reader(filesystem: Any, options: Mapping[str, Any]) -> Any:
    """What reads ranges of a file system's objects: it itself, or for S3 its `SignedReads`.

    `options` are the storage options that it was made with.
    """
    if "s3" not in filesystem.protocol or not _can_sign(options):
        return filesystem
    from lundprobe_zarr.storage.s3 import SignedReads

    # Kept with the file system, which is of this process alone as its connections must be.
    return vars(filesystem).setdefault("_lundprobe_signed", SignedReads(filesystem))


def _can_sign(options: Mapping[str, Any]) -> bool:
    """Whether URLs signed by a client with these storage options do all that the options ask."""
    names = set(options) - {"client_kwargs", "config_kwargs"}
    for nested in ("client_kwargs", "config_kwargs"):
        names |= set(options.get(nested) or {})
    return names <= _RESPECTED
