"""A stream used in the parent and then forked works or raises, and never hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import UniformSampling
from lundprobe_zarr.stream import forks as stream_forks

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    # Python ≥ 3.12 warns of forking with threads: that is what is tried here.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def forked(child: Callable[[], bool], seconds: float = 30) -> str:
    """What became of a forked child: `worked`, `failed` or `hung`."""
    pid = os.fork()
    if not pid:
        done = False
        try:
            done = child()
        finally:
            os._exit(0 if done else 1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return "worked" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"


def make(cohort, **changes) -> lp.PatchStream:
    arguments = {"structures": ("Rectum", "Bladder"), "threads": 3, "dose": True} | changes
    return lp.PatchStream(cohort, (6, 30, 30), **arguments)


@pytest.mark.parametrize("place", ["local", "web"])
def test_a_stream_in_the_middle_of_its_work_can_be_forked(request, cohort, place):
    """Forked at 12 moments while three threads read: each child reads the whole epoch anew."""
    web = request.getfixturevalue("web") if place == "web" else None
    stream = make(web.cohort if web else cohort, sampling=UniformSampling(6))
    iterator, reference = iter(stream), len(stream.plan)

    def child() -> bool:
        return sum(1 for _ in stream.read(stream.share, 0, 0)) == reference

    for _ in range(12):
        next(iterator)
        assert forked(child) == "worked"
    assert sum(1 for _ in iterator) == reference - 12, "and the parent goes on"


def test_an_iteration_begun_before_a_fork_raises_after_it(cohort):
    iterator = iter(make(cohort))
    next(iterator)

    def child() -> bool:
        with pytest.raises(UsageError, match="before a fork"):
            next(iterator)
        return True

    assert forked(child) == "worked"
    assert sum(1 for _ in iterator) == 31


def test_a_fork_in_the_middle_of_a_read_that_never_ends_is_refused(cohort, monkeypatch):
    """The parent's lock is held for good in the child: it must say so, not wait for it."""
    monkeypatch.setattr(stream_forks, "TIMEOUT", 0.1)
    inside, done = threading.Event(), threading.Event()

    def endless() -> None:
        with stream_forks.reading():
            inside.set()
            done.wait(20)

    thread = threading.Thread(target=endless)
    thread.start()
    inside.wait(5)

    def child() -> bool:
        with pytest.raises(UsageError, match="forked while a thread of its parent was reading"):
            list(make(cohort))
        return True

    assert forked(child) == "worked"
    done.set()
    thread.join()
    assert forked(lambda: len(list(make(cohort))) == 32) == "worked"


def test_a_process_that_leaves_a_stream_half_read_ends(dataset):
    program = (
        "import sys, lundprobe_zarr as lp\n"
        "stream = lp.PatchStream(lp.open_cohort(sys.argv[1]), (6, 30, 30), threads=4)\n"
        "iterator = iter(stream); print(next(iterator)['index'])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(dataset)], capture_output=True, timeout=60, check=True
    )
    assert ran.stdout == b"0\n"
