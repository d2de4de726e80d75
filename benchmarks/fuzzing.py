"""Hostile input, at length: NIfTI headers, gzip streams, side files, names, stores, tables, SQL.

Each target of `benchmarks.hostile` is given cases by the thousand, spoilt at random from a seed,
fewer drawn by Hypothesis, and, with `--guided` and where atheris is installed (it is no dependency:
`pip install --target FOLDER atheris`, and `PYTHONPATH=FOLDER`), some led by the coverage of our
code. A case may end as documented and not otherwise: no other exception, no crash, no hang, no
memory beyond what there is, nothing written, no free text of a file in a message. A process runs
the cases of one target, so that a crash is a finding too. Writes `benchmarks/results/fuzzing.json`.

    python -m benchmarks.fuzzing --guided 20
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.hostile.material import Material, prepare
from benchmarks.hostile.targets import targets
from benchmarks.record import write_results

#: Cases that Hypothesis draws, of each target, for a hundred of the others.
_DRAWN = 0.02
#: Crashes of a target after which it is left.
_MOST_CRASHES = 5
_PACKAGES = ("hypothesis", "duckdb", "pyarrow", "pydantic", "fsspec", "atheris")


@dataclass
class Outcome:
    """Of one target: cases and seconds by engine, and what was found."""

    cases: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)

    def add(self, engine: str, ran: dict[str, Any]) -> None:
        """Count what a process did."""
        self.cases[engine] = self.cases.get(engine, 0) + ran["cases"]
        self.seconds += ran["seconds"]
        self.findings |= ran["findings"]


def main() -> None:
    """Run all targets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of cases")
    parser.add_argument("--guided", type=int, default=0, metavar="SECONDS", help="of each target")
    parser.add_argument("--only", action="append", help="a target; several may be named")
    options = parser.parse_args()
    guided = options.guided if find_spec("atheris") else 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        places = prepare(Path(folder))
        (Path(folder) / "scratch").mkdir()
        known = targets(Material(*places, Path(folder) / "scratch"))
        names = options.only or sorted(known, key=lambda n: -known[n].cases)
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            outcomes = pool.map(
                lambda n: _attack(n, int(known[n].cases * options.scale), guided, places), names
            )
            figures = dict(zip(names, map(vars, outcomes), strict=True))
    written = _figures(figures, time.monotonic() - begun, bool(options.guided) and not guided)
    print(json.dumps(written, indent=2))
    print(write_results("fuzzing", written))
    if written["findings"]:
        sys.exit(1)


def _figures(by_target: dict[str, dict[str, Any]], seconds: float, lacking: bool) -> dict[str, Any]:
    for target in by_target.values():
        target["seconds"] = round(target["seconds"], 1)
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "cases": sum(sum(t["cases"].values()) for t in by_target.values()),
        "findings": sum(len(t["findings"]) for t in by_target.values()),
        "seconds": round(seconds),
        "coverage_guided": "atheris is not installed" if lacking else "see the cases of atheris",
        "targets": by_target,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _attack(name: str, cases: int, guided: int, places: tuple[Path, Path]) -> Outcome:
    """All engines on one target, one after another."""
    outcome = Outcome()
    _run_all(outcome, name, "random", cases, 0, places)
    _run_all(outcome, name, "hypothesis", max(20, int(cases * _DRAWN)), 0, places)
    if guided:
        _run_all(outcome, name, "atheris", 1_000_000, guided, places)
    return outcome


def _run_all(
    outcome: Outcome, name: str, engine: str, cases: int, seconds: int, places: tuple[Path, Path]
) -> None:
    """Run cases, and go on behind one that ends its process."""
    first = 0
    for _ in range(_MOST_CRASHES):
        ended_at = _run(outcome, name, engine, first, cases - first, seconds, places)
        if ended_at is None:
            return
        first = ended_at + 1
        if engine != "random" or first >= cases:  # the others cannot begin in the middle
            return


def _run(
    outcome: Outcome,
    name: str,
    engine: str,
    first: int,
    cases: int,
    seconds: int,
    places: tuple[Path, Path],
) -> int | None:
    """Run cases in a process; the number of the case at which it crashed, None if it did not."""
    with tempfile.TemporaryDirectory() as folder:
        said, progress = Path(folder) / "outcome", Path(folder) / "progress"
        command = [sys.executable, "-m", "benchmarks.hostile.run", "--target", name]
        command += ["--engine", engine, "--first", str(first), "--cases", str(cases)]
        command += ["--seconds", str(seconds), "--source", str(places[0])]
        command += [
            "--dataset",
            str(places[1]),
            "--outcome",
            str(said),
            "--progress",
            str(progress),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if said.exists():
            outcome.add(engine, json.loads(said.read_text()))
            return None
        reached = int(progress.read_text()) if progress.exists() else first
        last = done.stderr.strip().splitlines()[-1:] or [""]
        crash = {f"exit status {done.returncode}": f"{engine}, case {reached}: {last[0][:300]}"}
        outcome.add(engine, {"cases": reached - first + 1, "seconds": 0.0, "findings": crash})
        return reached


if __name__ == "__main__":
    main()
