"""s3fs's client of S3, which looks at what range it was sent."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem

from lundprobe_zarr.store.ranges import require_range_of_s3


class BucketFiles(S3FileSystem):  # type: ignore[misc]
    """s3fs's file system; a range that was not asked for is asked for again, as s3fs does."""

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        answer = await super()._call_s3(method, *akwarglist, **kwargs)
        if method == "get_object":
            try:
                require_range_of_s3(kwargs, answer)
            except BaseException:
                answer["Body"].close()
                raise
        return answer
