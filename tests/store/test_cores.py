"""As many threads work as cores can keep busy, and none waits for ever for those waiting for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from lundprobe_zarr.store import cores
from lundprobe_zarr.store.cores import awaited, make_way, waiting, working

_LONG = 20.0


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads may work at a time."""
    monkeypatch.setattr(cores, "cores", lambda: 1)
    monkeypatch.setattr(cores, "_CORES", cores._Cores())


def _started(*calls: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def _require_ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(_LONG)
        assert not thread.is_alive()


def test_no_more_threads_work_than_may() -> None:
    at_work, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def work(_: int) -> None:
        nonlocal at_work, most
        with working():
            with lock:
                at_work += 1
                most = max(most, at_work)
            both.wait(_LONG)  # so that there are two, and never one alone
            with lock:
                at_work -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert most == 2


def test_within_work_it_is_the_same_core_with_memory_of_its_own() -> None:
    with working() as core, working() as again:
        assert core is again
        array = core.array("chunk", (2, 3), np.dtype("float32"))
        array[...] = 7
        assert core.array("bytes", (24,), np.dtype("uint8")).sum() != array.view(np.uint8).sum()
        assert np.shares_memory(array, core.array("chunk", (3,), np.dtype("int16")))
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(_memory).result(_LONG)
        assert not np.shares_memory(array, theirs)


def _memory() -> np.ndarray:
    with working() as core:
        return core.array("chunk", (2, 3), np.dtype("float32"))


def test_a_thread_that_waits_lends_its_core() -> None:
    """Two wait for a third, which needs a core of theirs to end."""
    done: Future[int] = Future()
    two_wait = threading.Barrier(3)

    def wait() -> None:
        with working():
            two_wait.wait(_LONG)
            assert awaited(done) == 1

    def work() -> None:
        two_wait.wait(_LONG)
        with working():
            done.set_result(1)

    _require_ended(_started(wait, wait, work))


def test_who_has_begun_goes_on_before_others_begin() -> None:
    order: list[str] = []
    lent, go_on, held = threading.Event(), threading.Event(), threading.Event()

    def begun() -> None:
        with working():
            with waiting():
                lent.set()
                go_on.wait(_LONG)
            order.append("went on")

    def other() -> None:
        with working():
            order.append("began")

    with working():
        first = _started(begun)
        lent.wait(_LONG)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_hold, held, lambda: _queued(beginning=1, going_on=1))
            held.wait(_LONG)
            second = _started(other)
            _until(lambda: _queued(beginning=1))
            go_on.set()
    _require_ended(first + second)
    assert order == ["went on", "began"]


def _hold(held: threading.Event, until: Callable[[], bool]) -> None:
    with working():
        held.set()
        _until(until)


def _queued(beginning: int = 0, going_on: int = 0) -> bool:
    found = cores._CORES
    return len(found._beginning) >= beginning and len(found._going_on) >= going_on


def _until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(_LONG / 0.005)):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError("waited for in vain")


def test_between_two_pieces_of_work_others_go_on() -> None:
    went_on = threading.Event()
    ready, release = threading.Barrier(3), threading.Event()

    def begun() -> None:
        with working():
            with waiting():
                ready.wait(_LONG)
                release.wait(_LONG)
            went_on.set()

    def keeps() -> None:
        with working():
            ready.wait(_LONG)
            _until(lambda: _queued(going_on=1))
            while not went_on.is_set():
                make_way()

    def holds() -> None:
        with working():
            ready.wait(_LONG)
            release.set()
            went_on.wait(_LONG)

    _require_ended(_started(begun, keeps, holds))
    assert went_on.is_set()


def test_who_is_interrupted_while_it_waits_takes_no_core_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(Future):  # type: ignore[type-arg]
        def result(self, timeout: float | None = None) -> cores.Core:
            if not self.done():
                raise KeyboardInterrupt
            return super().result(timeout)

    with working(), ThreadPoolExecutor(1) as pool:
        held, release = threading.Event(), threading.Event()
        pool.submit(_hold, held, release.is_set)
        held.wait(_LONG)
        outcome = []

        def interrupted() -> None:
            try:
                with working():
                    outcome.append("worked")
            except KeyboardInterrupt:
                outcome.append("interrupted")

        with monkeypatch.context() as patched:
            patched.setattr(cores, "Future", Interrupted)
            _require_ended(_started(interrupted))
        release.set()
    assert outcome == ["interrupted"]
    assert len(cores._CORES._free) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_child_has_all_cores() -> None:
    with working():
        child = os.fork()
        if child == 0:
            free = len(cores._CORES._free)
            os._exit(free if cores._CORES.mine is None else 99)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
