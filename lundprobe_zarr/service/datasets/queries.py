"""Work on tables: queries in child processes with limits, the rest in threads of this process.

A query waits for its turn. Callers take turns, so that one with many queries delays the others by
one query, not by all of them. A query ends when its client leaves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lundprobe_zarr.service.access.callers import Caller
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.sql.worker import Limits, SqlWorker, limits

_T = TypeVar("_T")

#: Processes beyond those that work, so that one is ready when another was ended at a limit.
_SPARES = 1
#: Queries that wait: all of them, and those of one caller.
_MOST_WAITING = 64
_MOST_OF_ONE_CALLER = 32
#: Threads for work of bounded cost.
_THREADS = 4
#: Seconds between attempts to end a query whose client left.
_AGAIN = 0.05
#: Most bytes of a query's result, as Arrow holds it.
RESULT_BYTES = 64_000_000


class Queries:
    """Runs the queries of one process of the service.

    Parameters
    ----------
    workers : int
        Queries at a time, each in a process of its own. Processes start with the first query.
    seconds : float
        Most seconds of a query, and most seconds that it waits for its turn.
    memory : int or str
        Most memory of a query beyond the tables, as for `Cohort.sql`.
    """

    def __init__(self, workers: int = 2, seconds: float = 30.0, memory: int | str = "1GB") -> None:
        self._bounds = replace(limits(seconds, memory), size=RESULT_BYTES)
        self._idle = deque(SqlWorker() for _ in range(workers + _SPARES))
        self._all = tuple(self._idle)
        self._free = workers
        self._have_started = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._queries = ThreadPoolExecutor(workers, "query")
        self._threads = ThreadPoolExecutor(_THREADS, "tables")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Queries:
        """Return the queries of a service with these settings. Raises `UsageError`."""
        return cls(**options)

    def bounds(self, caller: Caller, rows: int | None = None) -> Limits:
        """Return the limits of a caller's query; `rows` is the most rows of its result."""
        own = caller.limits.sql_seconds
        seconds = self._bounds.timeout if own is None else min(own, self._bounds.timeout)
        return replace(self._bounds, timeout=seconds, rows=rows)

    def prepare(self) -> None:
        """Start the processes now; else they start with the first query, which waits for one."""
        self._have_started = True
        for idle in self._idle:
            idle.prepare()

    async def aside(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run work of bounded cost in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    async def run(self, request: Request, caller: Caller, work: Callable[[SqlWorker], _T]) -> _T:
        """Run work that gives queries to a worker, when it is the caller's turn.

        Raises `HttpError` (503, or 429 for the caller's own share) if too many queries wait or one
        waits too long, and `ClientDisconnect` if the client leaves, which ends the query.
        """
        leaving = asyncio.ensure_future(_client_left(request))
        try:
            await self._turn(caller.name, leaving)
            try:
                return await self._work(work, leaving)
            finally:
                self._pass_on()
        finally:
            leaving.cancel()

    async def _turn(self, name: str, leaving: asyncio.Future[None]) -> None:
        """Wait for a turn."""
        if self._free and not self._waiting:
            self._free -= 1
            return
        line = self._waiting.get(name, deque())
        if len(line) >= _MOST_OF_ONE_CALLER:
            raise _busy(429, f"{len(line)} queries of {name} wait already.")
        if sum(map(len, self._waiting.values())) >= _MOST_WAITING:
            raise _busy(503, "Too many queries wait.")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        self._waiting[name] = line
        with ExitStack() as without_turn:
            without_turn.callback(self._leave, name, turn)
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait({turn, leaving}, timeout=self._bounds.timeout, return_when=first)
            if leaving.done():
                raise ClientDisconnect
            if not turn.done():
                raise _busy(503, f"Other queries took {self._bounds.timeout:g} s.")
            without_turn.pop_all()

    def _leave(self, name: str, turn: asyncio.Future[None]) -> None:
        """Give up a turn, or the place in the line."""
        if turn.done():
            self._pass_on()
            return
        self._waiting[name].remove(turn)
        if not self._waiting[name]:
            del self._waiting[name]

    def _pass_on(self) -> None:
        """Give the turn to the next caller, who then is the last."""
        if not self._waiting:
            self._free += 1
            return
        name, line = self._waiting.popitem(last=False)
        turn = line.popleft()
        if line:
            self._waiting[name] = line
        turn.set_result(None)

    async def _work(self, work: Callable[[SqlWorker], _T], leaving: asyncio.Future[None]) -> _T:
        worker = self._idle.popleft()
        if not self._have_started:
            self.prepare()
        started = asyncio.get_running_loop().run_in_executor(self._queries, work, worker)
        try:
            both: set[asyncio.Future[Any]] = {started, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                raise ClientDisconnect
            return started.result()
        finally:
            while not started.done():
                worker.cancel()
                await asyncio.wait({started}, timeout=_AGAIN)
            # A worker whose process was ended starts again, so it is the last to be used.
            failed = started.exception() is not None
            (self._idle.append if failed else self._idle.appendleft)(worker)

    def close(self) -> None:
        """End the processes."""
        for worker in self._all:
            worker.close()
        self._queries.shutdown(wait=False)
        self._threads.shutdown(wait=False)


async def _client_left(request: Request) -> None:
    """Wait until the client has left. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _busy(status: int, what: str) -> HttpError:
    return HttpError(status, f"{what} Try again in a moment.", headers={"Retry-After": "2"})
