"""Rows with handles: read-ahead of used columns, and reports of failures."""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.huggingface.handles import handle_in_row
from lundprobe_zarr.huggingface.references import Row
from lundprobe_zarr.huggingface.rows import RawRow

T = TypeVar("T")
#: Most patients to name in the final report.
_NAMED = 20


class SkippedRowsWarning(UserWarning):
    """Warning of a stream with `on_error="skip"` about rows that were left out.

    Shown every time, not once per process, unless a filter says otherwise.
    """


# After all other filters: Python's default would not show the warning in a second epoch.
warnings.simplefilter("always", SkippedRowsWarning, append=True)

#: A row that could not be made: its patient, and the error.
FailedRow = tuple[dict[str, Any], DamagedStoreError]
Numbered = tuple[int, dict[str, Any], Row]


def with_handles(
    rows: Iterable[RawRow | FailedRow], first: int, ahead: int, used: set[str]
) -> Iterator[Numbered]:
    """Yield rows, numbered from `first`, with a handle for each reference.

    Start reading the columns in `used` of the next `ahead` rows: columns whose voxels were read in
    earlier rows. So unused voxels are not read, e.g. masks if only images are used.
    """
    with _pool(ahead) as pool:
        waiting: deque[Numbered] = deque()
        for number, (values, references) in enumerate(rows, first):
            if isinstance(references, DamagedStoreError):
                row, references = Row({}, used, references), {}
            else:
                row = Row(references, used)
            handles = {n: handle_in_row(r, row, n) for n, r in references.items()}
            waiting.append((number, values | handles, row))
            if pool is not None:
                for *_, begun in waiting:
                    begun.begin(pool)
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


def prepared(items: Iterable[T], prepare: Callable[[T], Any], ahead: int) -> Iterator[T]:
    """Yield items after `prepare(item)`, which threads start `ahead` items earlier."""
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
    future.exception()  # the caller that uses the item raises the error with its patient
    return item


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor | None]:
    if not threads:
        yield None
        return
    pool = ThreadPoolExecutor(threads, "lundprobe-ahead")
    try:
        yield pool
    finally:  # also if the stream is not exhausted
        pool.shutdown(wait=False, cancel_futures=True)


def readable(rows: Iterable[Numbered]) -> Iterator[Numbered]:
    """Read all voxels of rows, and leave out rows of damaged stores.

    Warn at the first row left out of each patient, and at the end with the total. Raise all other
    errors.
    """
    left_out: Counter[str] = Counter()
    for number, values, row in rows:
        try:
            row.read_now()
        except DamagedStoreError as error:
            patient_id = values["patient_id"]
            left_out[patient_id] += 1
            if left_out[patient_id] == 1:
                _warn(f"rows of patient {patient_id} are left out that cannot be read: {error}")
            continue
        yield number, values, row
    if left_out:
        named = ", ".join(f"{i} ({n})" for i, n in left_out.most_common(_NAMED))
        more = f" and {len(left_out) - _NAMED} more patients" if len(left_out) > _NAMED else ""
        total = left_out.total()
        _warn(f"{total} {'rows were' if total > 1 else 'row was'} left out, of {named}{more}")


def _warn(text: str) -> None:
    warnings.warn(text, SkippedRowsWarning, stacklevel=3)
