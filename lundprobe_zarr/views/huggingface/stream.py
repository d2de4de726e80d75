"""Rows with handles for their references, what is used of them read ahead, failures reported."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.views.huggingface.reading import Row
from lundprobe_zarr.views.huggingface.rows import RawRow
from lundprobe_zarr.views.huggingface.voxels import LazyVoxels

T = TypeVar("T")
#: Failures that a report quotes; of more it gives the number.
_QUOTED = 20


class SkippedRowsWarning(UserWarning):
    """At the end of a stream with `on_error="skip"`: which rows were left out, and why."""


#: A row that could not be made: whose it is, and why.
FailedRow = tuple[dict[str, Any], LundProbeError]
Numbered = tuple[int, dict[str, Any], Row]


def with_handles(
    rows: Iterable[RawRow | FailedRow], first: int, ahead: int, used: set[str]
) -> Iterator[Numbered]:
    """Rows, numbered from `first` on, with a handle for each reference.

    Of the next `ahead` rows, the columns in `used` are begun to be read: those whose voxels were
    asked for in rows before. So nothing is read of a stream whose voxels nobody looks at, and no
    mask if only images are taken.
    """
    with _pool(ahead) as pool:
        waiting: deque[Numbered] = deque()
        for number, (values, references) in enumerate(rows, first):
            if isinstance(references, LundProbeError):
                row, references = Row({}, used, references), {}
            else:
                row = Row(references, used)
            handles = {n: LazyVoxels(r, row, n) for n, r in references.items()}
            waiting.append((number, values | handles, row))
            if pool is not None:
                for *_, begun in waiting:
                    begun.begin(pool)
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


def prepared(items: Iterable[T], prepare: Callable[[T], Any], ahead: int) -> Iterator[T]:
    """`items`, each once `prepare` is done with it; begun `ahead` items before by threads."""
    with _pool(ahead) as pool:
        if pool is None:
            yield from items
            return
        waiting: deque[tuple[T, Future[Any]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(prepare, item)))
            if len(waiting) > ahead:
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())


def _done(item: T, future: Future[Any]) -> T:
    future.exception()  # whoever uses the item meets the failure where it can be told of whom
    return item


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


def readable(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Those rows whose voxels can all be read; reads them. Warns of the others at the end."""
    failures: list[str] = []
    for number, values, row in rows:
        try:
            row.read_now()
        except LundProbeError as error:
            failures.append(f"patient {values['patient_id']}: {error}")
            continue
        yield number, values, row
    if failures:
        quoted = "\n".join(f"  {failure}" for failure in failures[:_QUOTED])
        more = f"\n  and {len(failures) - _QUOTED} more" if len(failures) > _QUOTED else ""
        warnings.warn(
            f"{len(failures)} rows were left out, as they could not be read:\n{quoted}{more}",
            SkippedRowsWarning,
            stacklevel=2,
        )
