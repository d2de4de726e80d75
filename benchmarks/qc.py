"""Quality control of 467 stand-in patients: seconds of the rules, the page and the command.

The patients are simulated, tables only (`benchmarks.cohort.simulate`), with numbers of no meaning,
so that most rules have much to flag: the worst case for the page. `command` is a whole process,
interpreter and imports included, without pictures. Each figure is the median of the repeats with
the smallest and the largest; processor seconds include the process that runs SQL.

    python -m benchmarks.qc
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cohort import simulate
from benchmarks.record import write_results
from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.quality.check import qc

_PATIENTS = 467


def main() -> None:
    """Measure and write benchmarks/results/qc.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {"patients": _PATIENTS}
    figures["load_average_before"] = [round(load, 1) for load in os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), _PATIENTS)
        figures |= measure(Path(folder), options.repeats)
    print(write_results("qc", figures))
    print(json.dumps(figures, indent=2))


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of the rules and the page in this process, and of the command."""
    seconds: dict[str, list[float]] = {"rules": [], "page": [], "command": [], "processor": []}
    page = folder / "qc.html"
    for _ in range(repeats):
        started = time.perf_counter()
        report = qc(open_cohort(folder))
        seconds["rules"].append(time.perf_counter() - started)
        started = time.perf_counter()
        report.save_html(page, pictures=False)
        seconds["page"].append(time.perf_counter() - started)
        wall, processor = command(folder, page)
        seconds["command"].append(wall)
        seconds["processor"].append(processor)
    return {
        "rules": len(report.outcomes),
        "findings": report.arrow().num_rows,
        "page_megabytes": round(page.stat().st_size / 1e6, 2),
        **{f"{name}_seconds": spread(values) for name, values in seconds.items()},
    }


def command(folder: Path, page: Path) -> tuple[float, float]:
    """Wall and processor seconds of the whole command without pictures."""
    arguments = ["qc", str(folder), "--html", str(page), "--no-pictures", "--fail-on", "never"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lundprobe_zarr", *arguments], check=True, stdout=subprocess.DEVNULL
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    found = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 2) for name, value in found.items()}


if __name__ == "__main__":
    main()
