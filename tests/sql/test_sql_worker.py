"""Queries keep their time and memory, whatever DuckDB makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import QueryError, QueryLimitError, UsageError
from lundprobe_zarr.sql.predicate import parse_predicate
from lundprobe_zarr.sql.worker import SqlWorker, limits, worker

BOMBS = [
    "list_sum(range(300000000))",
    "list_sum(list_transform(range(100000000), lambda x: x * 2))",
    "length(repeat('x', 2000000000) || repeat('y', 2000000000))",
    "(SELECT count(*) FROM range(10000000000) a WHERE hash(a.range) = 1)",
    "(SELECT max(a.range + b.range) FROM range(10000000) a, range(10000000) b)",
]
linux = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")


@pytest.fixture
def alone() -> Iterator[SqlWorker]:
    """A worker that is started."""
    found = SqlWorker()
    ask(found, "SELECT 1")
    yield found
    found.close()


def ask(of: SqlWorker, query: str, timeout: float = 60, memory: str = "2GB") -> pa.Table:
    return of.run(query, [query], {}, limits(timeout, memory))


def resident(process: int) -> int:
    """Most bytes of memory that a process has had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_query_ends_at_its_deadline_or_memory(phantom: Cohort, bomb: str) -> None:
    phantom.sql("SELECT 1")
    started = time.monotonic()
    with pytest.raises(QueryLimitError, match=r"(timeout|memory)= \(--(timeout|memory)\)$"):
        phantom.sql(f"SELECT {bomb}", timeout=0.5, memory="300MB")
    assert time.monotonic() - started < 10  # the machine may be busy; without a limit: minutes
    assert phantom.sql("SELECT 1 AS a").a.tolist() == [1]


@pytest.mark.parametrize("bomb", BOMBS[:3])
def test_a_predicate_does_too(phantom: Cohort, bomb: str) -> None:
    with pytest.raises(QueryLimitError):
        len(phantom.where(f"{bomb} > n_fiducials", timeout=0.5, memory="300MB"))


@linux
def test_memory_is_limited_before_it_is_taken(alone: SqlWorker) -> None:
    process = alone._process
    assert process is not None
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            try:
                most.append(resident(process.pid))
            except (OSError, StopIteration):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    with pytest.raises(QueryLimitError, match=r"ended at its memory limit of 200 MB"):
        ask(alone, "SELECT list_sum(range(300000000))", memory="200MB")
    stop.set()
    thread.join()
    assert max(most) < 1_500_000_000  # 15 GB without


@pytest.mark.parametrize(
    ("predicate", "bounded"),
    [
        ("protocol = 'newAcq' AND Rectum.volume_cc > 0.5 * 60 OR abs(dose_max_gy - 40) < 2", True),
        ("n_fiducials IN (2, 3) AND NOT missing_BODY AND mri_shape[1] BETWEEN 1 AND 99", True),
        ("list_contains(missing_structures, 'PenileBulb') AND starts_with(part, 'ba')", True),
        ("len(range(3)) = 3", False),
        ("len(repeat(part, 3)) = 3", False),
        ("len(list_filter(missing_structures, lambda s: s = 'BODY')) = 0", False),
        ("part LIKE '%a%'", False),
        ("CAST(n_fiducials AS INTEGER) = 3", False),
        ("len([1, 2]) = 2", False),
        ("len(part || protocol) > 2", False),
    ],
)
def test_what_is_bounded_by_the_rows_runs_here(predicate: str, bounded: bool) -> None:
    assert parse_predicate(predicate).bounded is bounded


def test_tables_are_sent_once(alone: SqlWorker) -> None:
    table = pa.table({"a": [1, 2]})
    for query, expected in (("SELECT sum(a)::INT AS a FROM t", [3]), ("FROM t", [1, 2])):
        assert alone.run(query, [query], {"t": table}, limits()).column("a").to_pylist() == expected
    assert alone._count == 1
    del table
    ask(alone, "SELECT 1")
    assert alone._sent == {}


def test_a_cancelled_query_says_so_and_the_next_runs(alone: SqlWorker) -> None:
    threading.Timer(0.5, alone.cancel).start()
    with pytest.raises(QueryLimitError, match="was cancelled"):
        ask(alone, f"SELECT {BOMBS[3]}")
    assert ask(alone, "SELECT 2 AS a").column("a").to_pylist() == [2]
    alone.cancel()  # none runs
    assert ask(alone, "SELECT 2 AS a").num_rows == 1


def test_a_process_that_was_killed_between_queries_is_replaced(alone: SqlWorker) -> None:
    assert alone._process is not None
    alone._process.kill()
    alone._process.wait()
    assert ask(alone, "SELECT 2 AS a").num_rows == 1


def test_a_process_that_ends_amid_a_query_is_told_from_a_deadline(alone: SqlWorker) -> None:
    process = alone._process
    assert process is not None
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(QueryLimitError, match=r"ended by itself \(exit status -?\d+\), probably"):
        ask(alone, f"SELECT {BOMBS[3]}")
    assert ask(alone, "SELECT 2 AS a").num_rows == 1


def test_a_mistake_keeps_the_process(alone: SqlWorker) -> None:
    process = alone._process
    with pytest.raises(QueryError, match="'a' is not a whole number"):
        ask(alone, "SELECT 'a'::INT")
    ask(alone, "SELECT 1")
    assert alone._process is process


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True, None])
def test_a_timeout_is_seconds(phantom: Cohort, timeout: float) -> None:
    with pytest.raises(UsageError, match=r"timeout=.*; expected seconds"):
        phantom.sql("SELECT 1", timeout=timeout)


@pytest.mark.parametrize("memory", [0, "2", "GB", "-1GB", 1.5, None, "1MB", True, "9999999TB"])
def test_memory_is_bytes_or_a_size(phantom: Cohort, memory: str) -> None:
    with pytest.raises(UsageError, match=r"memory=.*; expected at least 10 MB"):
        phantom.where("true", memory=memory)
    assert limits(1, "1.5 GiB").memory == 3 * 2**29
    assert limits(1, "500mb").memory == 500_000_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_a_worker_of_its_own() -> None:
    program = (
        "import os\nfrom lundprobe_zarr.sql.worker import worker, limits\n"
        "ask = lambda: worker().run('', ['SELECT 1'], {}, limits()).num_rows\n"
        "ask(); child = os.fork()\n"
        "if child == 0: os._exit(ask() - 1)\n"  # old Arrow aborts a fork in sys.exit
        "print(os.waitpid(child, 0)[1], ask())"
    )
    assert run(program) == "0 1\n"


def test_the_process_imports_little_and_no_main(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('main')\nfrom lundprobe_zarr.sql import child, worker\nimport sys\n"
        "worker._PROGRAM = 'import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        "import lundprobe_zarr.sql.child as c; import sys; "
        'assert not {"torch", "datasets", "pandas", "zarr", "xarray"} & set(sys.modules);'
        " c.main()'\n"
        "print(worker.worker().run('', ['SELECT 1'], {}, worker.limits()).num_rows)"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout == "main\n1\n"


def run(program: str) -> str:
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


ENDLESS = (
    "from lundprobe_zarr.sql.worker import worker, limits\n"
    "worker().run('', ['SELECT 1'], {}, limits())\n"
    "print(worker()._process.pid, flush=True)\n"
    f"worker().run('', ['SELECT {BOMBS[3]}'], {{}}, limits())"
)


@linux
@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "ctrl-c", "term"]
)
def test_the_process_ends_with_its_parent(sent: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(sent)
        parent.wait(20)
        assert ("KeyboardInterrupt" in parent.stderr.read()) == (sent == signal.SIGINT)
    for _ in range(200):
        if is_gone(child):
            return
        time.sleep(0.05)
    pytest.fail("the process still runs")


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_the_worker_of_a_process_is_one() -> None:
    assert worker() is worker()
