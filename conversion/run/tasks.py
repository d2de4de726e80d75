"""Run tasks, one per patient, largest first: a bounded number on a cluster, or in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lundprobe_zarr.conversion.run.cluster import MisfitError

if TYPE_CHECKING:  # takes 0.4 s to import: where it is needed
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Tasks submitted at a time: more than the workers of any expected cluster. Each task takes about
#: 20 kB of the scheduler's memory, so their number is bounded.
_AHEAD = 1000


def run_tasks(
    client: Client,
    task: Callable[[Item], Result],
    items: Sequence[Item],
    size: Callable[[Item], int],
) -> Iterator[tuple[Item, Result | BaseException]]:
    """Run a task for each item, the largest by `size` first; yield results as completed.

    A task that failed, because its worker ended or it has a bug, yields its error. Raises
    `MisfitError` for a worker that cannot take part.
    """
    from distributed import as_completed

    waiting = iter(sorted(items, key=lambda item: -size(item)))
    submitted: dict[Any, Item] = {}
    done = as_completed()

    def submit() -> None:
        for item in waiting:
            future = client.submit(task, item, pure=False, retries=0)
            submitted[future.key] = item
            done.add(future)
            return

    for _ in range(_AHEAD):
        submit()
    for future in done:
        yield submitted.pop(future.key), _outcome(future)
        future.release()
        submit()


def run_here(
    task: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Item], int]
) -> Iterator[tuple[Item, Result | BaseException]]:
    """Run a task for each item in this process, one after another; otherwise like `run_tasks`."""
    for item in sorted(items, key=lambda item: -size(item)):
        result: Result | BaseException
        try:
            result = task(item)
        except Exception as error:  # noqa: BLE001 - as on a worker: the other tasks still run
            result = error
        yield item, result


def _outcome(future: Any) -> Any:
    """Return the result or the error of a task; raise errors that end the whole run."""
    error = future.exception()
    if isinstance(error, MisfitError):
        raise error
    if isinstance(error, ImportError):  # of the task itself: a worker that came later
        raise MisfitError(
            f"a worker cannot import the converter ({error})",
            expected="the same version of lundprobe-zarr on all",
            remedy="correct or stop it, then run the same command again",
        ) from error
    return future.result() if error is None else error
