"""s3fs's client of S3, which also checks that the range sent is the one requested."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from inspect import signature
from typing import Any

from s3fs import S3FileSystem

from lundprobe_zarr.storage.web import require_range

#: Otherwise s3fs since 2026 requests an object's size first, to fetch large ones in pieces.
_MAY_SPLIT = "max_concurrency" in signature(S3FileSystem._cat_file).parameters
_IN_ONE_REQUEST = {"max_concurrency": 1} if _MAY_SPLIT else {}


def require_range_of_s3(requested: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Check the answer of boto as `require_range` does."""
    if "Range" in requested:
        require_range(requested["Range"], answer.get("ContentRange"), answer["ContentLength"])


class BucketFiles(S3FileSystem):  # type: ignore[misc]
    """s3fs's file system; a wrong range is requested again, by the retries of s3fs."""

    takes_seconds = True

    async def _cat_file(
        self, path: str, *where: Any, seconds: float | None = None, **how: Any
    ) -> bytes:
        reading = super()._cat_file(path, *where, **_IN_ONE_REQUEST | how)
        return bytes(await asyncio.wait_for(reading, seconds))

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        answer = await super()._call_s3(method, *akwarglist, **kwargs)
        if method == "get_object":
            with ExitStack() as stack:
                stack.callback(answer["Body"].close)
                require_range_of_s3(kwargs, answer)
                stack.pop_all()  # expected: the body is to be read
        return answer
