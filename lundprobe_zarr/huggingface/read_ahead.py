"""Rows with handles for their references, what is used of them read ahead, failures reported."""

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
#: Patients that the report at the end names; of more it gives the number.
_NAMED = 20


class SkippedRowsWarning(UserWarning):
    """Of a stream with `on_error="skip"`: whose rows are left out and why, and how many in all.

    Shown each time, not once a process as other warnings are, unless a filter says otherwise.
    """


# Behind all other filters. Python's default would not tell of a second epoch.
warnings.simplefilter("always", SkippedRowsWarning, append=True)

#: A row that could not be made: whose it is, and why.
FailedRow = tuple[dict[str, Any], DamagedStoreError]
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
    """Those rows whose voxels can all be read; reads them. Rows of damaged stores are left out.

    Warns of each patient as soon as a row of theirs is left out, and at the end of how many were.
    Whatever else keeps a row from being read is raised.
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
