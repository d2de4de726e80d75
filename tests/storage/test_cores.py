"""As many threads work as cores can keep busy, and none waits for ever for those waiting for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from lundprobe_zarr.storage import cores
from lundprobe_zarr.storage.cores import awaited, make_way, waiting, working

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
    def work() -> None:
        with working() as core, working() as again:
            assert core is again
            array = core.array("chunk", (2, 3), np.dtype("float32"))
            assert not np.shares_memory(array, core.array("bytes", (24,), np.dtype("uint8")))
            assert np.shares_memory(array, core.array("chunk", (3,), np.dtype("int16")))
            with waiting(), ThreadPoolExecutor(2) as pool:
                theirs = pool.submit(_memory).result(_LONG)
            with working() as mine:
                assert mine.array("chunk", (2, 3), np.dtype("float32")).shape == (2, 3)
            assert theirs.shape == (2, 3)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(_LONG)


def test_the_main_thread_waits_for_nobody_and_takes_nothing_from_others() -> None:
    with working() as core, waiting(), ThreadPoolExecutor(2) as pool:
        both = threading.Barrier(3)

        def work() -> cores.Core:
            with working() as mine:
                both.wait(_LONG)
                return mine

        threads = [pool.submit(work) for _ in range(2)]
        both.wait(_LONG)
        with working() as again:
            assert again is core
        assert len({core, *(thread.result(_LONG) for thread in threads)}) == 3


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


def _until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(_LONG / 0.005)):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError("waited for in vain")


def test_between_two_pieces_of_work_others_have_their_turn() -> None:
    had = threading.Event()
    at_work = threading.Barrier(3)

    def keeps() -> None:
        with working():
            at_work.wait(_LONG)
            _until(lambda: bool(cores._CORES._turns))
            while not had.is_set():
                make_way()

    def holds() -> None:
        with working():
            at_work.wait(_LONG)
            assert had.wait(_LONG)

    def begins() -> None:
        at_work.wait(_LONG)
        with working():
            had.set()

    _require_ended(_started(keeps, holds, begins))


def test_who_wants_to_know_is_told_of_waiting() -> None:
    told: list[bool] = []

    def work() -> None:
        with working(told.append):
            with waiting():
                assert told == [True]
            assert told == [True, False]
        with working(), waiting():
            pass

    _require_ended(_started(work))
    assert told == [True, False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_child_has_all_cores() -> None:
    at_work, done = threading.Event(), threading.Event()

    def work() -> None:
        with working():
            at_work.set()
            done.wait(_LONG)

    threads = _started(work)
    at_work.wait(_LONG)
    child = os.fork()
    if child == 0:
        os._exit(len(cores._CORES._free))
    _, status = os.waitpid(child, 0)
    done.set()
    _require_ended(threads)
    assert os.waitstatus_to_exitcode(status) == 2
