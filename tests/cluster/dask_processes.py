"""A dask cluster of separate processes, and conversions on it, as their commands start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location

ROOT = Path(__file__).parents[2]
#: For what takes a second or two on a quiet machine.
PATIENCE_S = 120.0


def start(*arguments: object, cwd: Path, env: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """Start a module of Python as a process and group of its own; its output goes to a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and what it started, as if the power were cut."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@dataclass
class Cluster:
    """A scheduler and its workers, which write their logs and more below `folder`."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        file = self.folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard",
            "--scheduler-file", file,
        )  # fmt: skip
        wait_for(lambda: file.exists() and file.stat().st_size > 0, self.scheduler)
        self.address = json.loads(file.read_text())["address"]

    def worker(
        self, env: Mapping[str, str] = {}, before: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """A worker process of one thread; `before` are words of the command line before Python."""
        return self._start(
            "worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard",
            "--local-directory", self.folder, env=env, before=before,
        )  # fmt: skip

    def _start(
        self, kind: str, *arguments: object, env: Mapping[str, str] = {}, before: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", f"distributed.cli.dask_{kind}"]
                + [str(a) for a in arguments],
                cwd=self.folder,  # in the checkout its egg-info would count as installed
                env=os.environ | {"PYTHONPATH": str(ROOT), **env},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End all that is left."""
        for process in self.processes:
            kill(process)


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    """Until a condition holds; fails if a process ends before, or after a long time."""
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "ended before its time"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def drafts(dataset: Path, process: subprocess.Popen[str]) -> list[Path]:
    """Stores that a process is writing just now."""
    return list(dataset.glob(f"patients/.*.partial-*-{process.pid}-*"))


def content(dataset: Path) -> str:
    """The content hash of a dataset, found sound to every byte."""
    assert validate(Location(dataset), deep=True).problems == ()
    return str(json.loads((dataset / "lundprobe.json").read_text())["content"]["sha256"])
