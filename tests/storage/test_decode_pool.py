"""Chunks are decoded in as many threads as there are cores, whoever asks and waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from lundprobe_zarr.storage import decode_pool
from lundprobe_zarr.storage.decode_pool import decode, scratch

_LONG = 20.0


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads decode, new ones for each test."""
    monkeypatch.setattr(decode_pool, "cores", lambda: 2)
    _end()
    decode_pool._new_turns()
    yield
    _end()
    monkeypatch.undo()
    decode_pool._new_turns()


def _end() -> None:
    while decode_pool._POOLS:
        decode_pool._POOLS.pop().shutdown()


@pytest.mark.parametrize("run", [partial(decode, 5), decode_pool.decode_in_turn])
def test_no_more_tasks_run_than_there_are_cores(run: Callable[[Callable[[], None]], None]) -> None:
    at_work, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def work() -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        both.wait(_LONG)  # so that there are two, and never one alone
        with lock:
            at_work -= 1

    with ThreadPoolExecutor(8) as readers:
        for reader in [readers.submit(run, work) for _ in range(8)]:
            reader.result(_LONG)
    assert most == 2


def test_the_first_error_is_raised_once_all_tasks_have_ended() -> None:
    ended = []
    numbers = iter(range(4))

    def work() -> None:
        number = next(numbers)
        if number in (1, 2):
            raise ValueError("damaged")
        ended.append(number)

    with pytest.raises(ValueError, match="damaged"):
        decode(4, work)
    assert sorted(ended) == [0, 3]


def test_each_thread_has_memory_of_its_own_that_it_uses_again() -> None:
    chunk = scratch().array("chunk", (2, 3), np.dtype("float32"))
    assert np.shares_memory(chunk, scratch().array("chunk", (3,), np.dtype("int16")))
    assert not np.shares_memory(chunk, scratch().bytes("file", 24))
    theirs: list[np.ndarray] = []
    decode(1, lambda: theirs.append(scratch().array("chunk", (2, 3), np.dtype("float32"))))
    assert theirs[0].shape == (2, 3)
    assert not np.shares_memory(chunk, theirs[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_child_decodes_in_threads_of_its_own() -> None:
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        done.wait(_LONG)

    reader = threading.Thread(target=partial(decode, 2, work))
    reader.start()
    begun.wait(_LONG)
    child = os.fork()
    if child == 0:
        ended: list[int] = []
        decode(2, lambda: ended.append(os.getpid()))
        os._exit(len(ended))
    _, status = os.waitpid(child, 0)
    done.set()
    reader.join(_LONG)
    assert os.waitstatus_to_exitcode(status) == 2


def test_a_turn_ends_with_an_error() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            decode_pool.decode_in_turn(fails)
