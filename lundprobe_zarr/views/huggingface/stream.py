"""Rows with handles for their references, what is used of them read ahead, failures reported."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.views.huggingface.reading import Row
from lundprobe_zarr.views.huggingface.rows import RawRow
from lundprobe_zarr.views.huggingface.voxels import LazyVoxels

#: Failures that a report quotes; of more it gives the number.
_QUOTED = 20


class SkippedRowsWarning(UserWarning):
    """At the end of a stream with `on_error="skip"`: which rows were left out, and why."""


def with_handles(rows: Iterable[RawRow], ahead: int) -> Iterator[tuple[dict[str, Any], Row]]:
    """Rows with a handle for each reference; the next `ahead` rows are begun to be read.

    Read ahead are the columns whose voxels were asked for in rows before: nothing of a stream
    whose voxels nobody looks at, and no mask if only images are taken.
    """
    used: set[str] = set()
    with _pool(ahead) as pool:
        waiting: deque[tuple[dict[str, Any], Row]] = deque()
        for values, references in rows:
            row = Row(references, used)
            handles = {n: LazyVoxels(r, row, n) for n, r in references.items()}
            waiting.append((values | handles, row))
            if len(waiting) > ahead:
                yield waiting.popleft()
            if pool is not None:
                for _, begun in waiting:
                    begun.begin(pool)
        yield from waiting


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor | None]:
    if not threads:
        yield None
        return
    pool = ThreadPoolExecutor(threads, "lundprobe-ahead")
    try:
        yield pool
    finally:  # also when the stream is left before its end
        pool.shutdown(wait=False, cancel_futures=True)


def readable(rows: Iterable[tuple[dict[str, Any], Row]]) -> Iterator[tuple[dict[str, Any], Row]]:
    """Those rows whose voxels can all be read; reads them. Warns of the others at the end."""
    failures: list[str] = []
    for values, row in rows:
        try:
            row.read_now()
        except LundProbeError as error:
            failures.append(f"patient {values['patient_id']}: {error}")
            continue
        yield values, row
    if failures:
        quoted = "\n".join(f"  {failure}" for failure in failures[:_QUOTED])
        more = f"\n  and {len(failures) - _QUOTED} more" if len(failures) > _QUOTED else ""
        warnings.warn(
            f"{len(failures)} rows were left out, as they could not be read:\n{quoted}{more}",
            SkippedRowsWarning,
            stacklevel=2,
        )
