"""How a conversion goes, as it goes: live on a terminal, a line a patient elsewhere."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from lundprobe_zarr.cli.console import console, count, duration, say, size
from lundprobe_zarr.cli.verbosity import is_quiet

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.arrays.patient import PatientResult

_PER_SECOND = 4
#: Before so many seconds of work a rate means nothing: workers start and read first files.
_SETTLED_SECONDS = 3.0


class Tally:
    """What has been done: patients by status and source bytes, from whichever thread reports.

    Bytes are reported by file, patients at their end. A patient that fails leaves bytes
    unreported, so finished patients count at least for their files.
    """

    def __init__(self, known: int) -> None:
        self._known = known
        self.patients = self.total_bytes = self.workers = 0
        self.skipped = self.converted = self.failed = 0
        self._reported = self._ended = 0
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def start(self, patients: int, source_bytes: int, workers: int) -> None:
        """Note the work to do; patients known beyond it need none."""
        self.skipped = self._known - patients
        self.patients, self.total_bytes, self.workers = patients, source_bytes, workers
        self._start = time.monotonic()

    def advance(self, source_bytes: int) -> None:
        """Note a file that has been stored."""
        with self._lock:
            self._reported += source_bytes

    def finish(self, result: PatientResult) -> None:
        """Note a patient that is done."""
        with self._lock:
            self._ended += result.source_bytes
            self.failed += result.status == "failed"
            self.converted += result.status == "converted"

    @property
    def done(self) -> int:
        """Patients that are done, one way or another."""
        return self.converted + self.failed

    @property
    def bytes(self) -> int:
        """Source bytes dealt with."""
        return min(max(self._reported, self._ended), self.total_bytes)

    @property
    def stopping(self) -> str:
        """What to say when work is being ended."""
        return "Stopping: ending the workers …" if self.workers else "Stopping …"

    @property
    def rate(self) -> float | None:
        """Source bytes a second since the start; None as long as that means nothing."""
        seconds = time.monotonic() - self._start
        return self.bytes / seconds if self.bytes and seconds > _SETTLED_SECONDS else None


class LineReporter:
    """Reports to a file or pipe: a line when work starts and one a patient, flushed."""

    def __init__(self, known: int) -> None:
        self.tally = Tally(known)

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Say what there is to do."""
        self.tally.start(patients, source_bytes, workers)
        say(_opening(self.tally))

    def advanced(self, source_bytes: int) -> None:
        """Count a file."""
        self.tally.advance(source_bytes)

    def finished(self, result: PatientResult) -> None:
        """Say how a patient went."""
        tally = self.tally
        tally.finish(result)
        line = f"[{tally.done}/{tally.patients}] {_verdict(result)}"
        say(line if result.error is None else f"{line}: {result.error}")

    def stopping(self) -> None:
        """Say that work is being ended; called in a signal handler, so past all buffers."""
        os.write(2, f"{self.tally.stopping}\n".encode())

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class QuietReporter(LineReporter):
    """Reports failures alone, a line each."""

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Count what there is to do."""
        self.tally.start(patients, source_bytes, workers)

    def finished(self, result: PatientResult) -> None:
        """Say how a patient failed."""
        self.tally.finish(result)
        if result.error is not None:
            say(f"{_verdict(result)}: {result.error}")


class LiveReporter:
    """Reports to a terminal: a bar and the figures below it, failures above it as they come."""

    def __init__(self, known: int) -> None:
        self.tally = Tally(known)
        self._stopping = False
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            console=console(),
            expand=True,
        )
        self._task = self._bar.add_task("Converting", total=None)
        self._live = Live(
            get_renderable=self._render,
            console=console(),
            refresh_per_second=_PER_SECOND,
            transient=True,
        )

    def _render(self) -> Group:
        below = self.tally.stopping if self._stopping else _figures(self.tally)
        return Group(self._bar.get_renderable(), Text(f"  {below}"))

    def started(self, patients: int, source_bytes: int, workers: int) -> None:
        """Say what there is to do and show the bar."""
        self.tally.start(patients, source_bytes, workers)
        say(_opening(self.tally))
        self._bar.reset(self._task, total=max(source_bytes, 1))

    def advanced(self, source_bytes: int) -> None:
        """Move the bar."""
        self.tally.advance(source_bytes)
        self._bar.update(self._task, completed=self.tally.bytes)

    def finished(self, result: PatientResult) -> None:
        """Move the bar; a failure is said above it."""
        self.tally.finish(result)
        self._bar.update(self._task, completed=self.tally.bytes)
        if result.error is not None:
            say(f"{_verdict(result)}: {result.error}", "red")

    def stopping(self) -> None:
        """Show that work is being ended; called in a signal handler, so drawn later."""
        self._stopping = True

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()


def reporter(known: int) -> LineReporter | LiveReporter:
    """Return the reporter that suits standard output, of `known` patients, some converted."""
    if is_quiet():
        return QuietReporter(known)
    return LiveReporter(known) if console().is_terminal else LineReporter(known)


def _opening(tally: Tally) -> str:
    if not tally.patients:
        return f"Nothing to convert: {count(tally.skipped, 'patient')} converted before, unchanged."
    skipped = f"; {tally.skipped} converted before and unchanged: skipped" if tally.skipped else ""
    by = f"with {count(tally.workers, 'worker')}" if tally.workers else "in this process"
    return (
        f"{count(tally.patients, 'patient')} to convert, {size(tally.total_bytes)}, {by}{skipped}."
    )


def _figures(tally: Tally) -> str:
    if not tally.patients:
        return "looking at what is there and starting workers …"
    figures = [
        f"{tally.done}/{tally.patients} patients",
        f"{size(tally.bytes)} of {size(tally.total_bytes)}",
        f"{tally.failed} failed",
        f"{tally.skipped} skipped",
    ]
    if tally.rate is not None:
        left = (tally.total_bytes - tally.bytes) / tally.rate
        figures[2:2] = [f"{size(tally.rate)}/s", f"{duration(left)} left"]
    return ", ".join(figures)


def _verdict(result: PatientResult) -> str:
    findings = f", {count(len(result.findings), 'finding')}" if result.findings else ""
    return (
        f"{result.patient_id} {result.status} ({size(result.source_bytes)} in "
        f"{duration(result.seconds)}{findings})"
    )
