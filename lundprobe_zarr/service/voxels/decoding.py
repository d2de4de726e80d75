"""Work that decodes voxels: in few threads, admitted by its cost, given up when the client leaves.

The event loop must not wait for it, and many clients at a time must not fill the memory.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.storage.decode_pool import cores

_T = TypeVar("_T")
#: Decoded bytes that may be waited for in all. A core decodes about 1 GB a second, so who comes
#: beyond would wait for some seconds.
_MOST_PENDING = 4 << 30
#: The least that a piece of work counts as, in decoded bytes: its own handling.
_LEAST_COST = 4 << 20


class Decoding:
    """Threads that decode, for the requests of one process.

    Parameters
    ----------
    threads : int, optional
        How many work at a time [default: the cores of this process, at least two].
    most_pending : int, optional
        Decoded bytes that may be waited for; further requests are refused with status 503.
    """

    def __init__(self, threads: int | None = None, most_pending: int = _MOST_PENDING) -> None:
        self._pool = ThreadPoolExecutor(threads or max(2, cores()), "planes")
        self._most_pending = most_pending
        self._lock = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """Decoded bytes of all work that has been admitted and has not ended."""
        return self._pending

    async def run(self, request: Request, work: Callable[[], _T], cost: int = 0) -> _T:
        """Return what `work` returns, run in a thread.

        Parameters
        ----------
        request : Request
            Whose client waits. When it leaves, work that has not begun is not done.
        work : callable
            What to do.
        cost : int
            Bytes that it decodes.

        Raises
        ------
        HttpError
            503 if too much is waiting already.
        ClientDisconnect
            If the client left.
        """
        future = self._submit(work, max(cost, _LEAST_COST))
        result = asyncio.wrap_future(future)
        result.add_done_callback(_retrieved)
        leaving = asyncio.ensure_future(_left(request))
        try:
            both: set[asyncio.Future[Any]] = {result, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientDisconnect
            return result.result()
        finally:
            leaving.cancel()
            result.cancel()  # which a thread that has begun does not notice

    def _submit(self, work: Callable[[], _T], cost: int) -> Future[_T]:
        with self._lock:
            if self._pending and self._pending + cost > self._most_pending:
                raise HttpError(
                    503,
                    "The service is decoding as much as it can for others. Try again in a moment.",
                    headers={"Retry-After": "1"},
                )
            self._pending += cost
        try:
            future = self._pool.submit(work)
        except RuntimeError:  # the service ends
            self._ended(cost)
            raise HttpError(503, "The service is ending.", headers={"Retry-After": "5"}) from None
        future.add_done_callback(lambda _: self._ended(cost))
        return future

    def _ended(self, cost: int) -> None:
        with self._lock:
            self._pending -= cost

    def close(self) -> None:
        """End the threads; what has not begun is not done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _left(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _retrieved(future: asyncio.Future[_T]) -> None:
    """Look at the error of work that nobody waits for any more."""
    if not future.cancelled():
        future.exception()
