"""What people see while a conversion runs, and how quantities are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lundprobe_zarr.cli import console as terminal
from lundprobe_zarr.cli import progress
from lundprobe_zarr.cli.console import count, duration, size
from lundprobe_zarr.conversion.arrays.patient import PatientResult


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_756_000, "1.76 MB"), (176.5e9, "176 GB"),
     (999_600, "1 MB"), (3.2e15, "3.2e+03 TB")],
)  # fmt: skip
def test_size(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0124, "12 ms"), (0.44, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"),
     (3 * 3600 + 12 * 60, "3 h 12 min")],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_count():
    assert [count(1, "patient"), count(2, "patient"), count(0, "entry")] == [
        "1 patient", "2 patients", "0 entries",
    ]  # fmt: skip


def result(patient: str, status: str, source_bytes: int, error: str | None = None) -> PatientResult:
    return PatientResult(patient, status, source_bytes, 1.5, (), error)


def test_tally_counts_bytes_once_whoever_tells():
    tally = progress.Tally(known=5)
    tally.start(3, 300, 2)
    assert (tally.skipped, tally.bytes, tally.rate) == (2, 0, None)
    tally.advance(60)
    assert tally.bytes == 60
    tally.finish(result("a", "failed", 100, "bad"))
    assert (tally.bytes, tally.failed, tally.done) == (100, 1, 1)
    tally.advance(100)
    tally.finish(result("b", "converted", 100))
    assert (tally.bytes, tally.converted, tally.done) == (200, 1, 2)
    tally.advance(500)
    assert tally.bytes == 300


def test_lines_for_files_and_pipes(capsys):
    with progress.LineReporter(known=3) as reporter:
        reporter.started(2, 2_000_000, 1)
        reporter.advanced(1_000_000)
        reporter.finished(result("a", "converted", 1_000_000))
        reporter.finished(result("b", "failed", 1_000_000, "b/x: torn; fetch it again"))
    assert capsys.readouterr().out.splitlines() == [
        "2 patients to convert, 2 MB, with 1 worker; 1 converted before and unchanged: skipped.",
        "[1/2] a converted (1 MB in 1.5 s)",
        "[2/2] b failed (1 MB in 1.5 s): b/x: torn; fetch it again",
    ]


def test_live_display_for_terminals(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    for module in (terminal, progress):
        monkeypatch.setattr(module, "console", lambda: console)
    with progress.LiveReporter(known=3) as reporter:
        reporter.started(2, 2_000_000, 1)
        reporter.advanced(1_000_000)
        reporter.finished(result("a", "failed", 1_000_000, "a/x: torn"))
        console.print(reporter._render())
        reporter.stopping()
        console.print(reporter._render())
    shown = screen.getvalue()
    assert "1/2 patients, 1 MB of 2 MB, 1 failed, 1 skipped" in shown
    assert "a failed (1 MB in 1.5 s): a/x: torn" in shown
    assert "50%" in shown
    assert "Stopping" in shown
