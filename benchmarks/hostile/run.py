"""One target's cases in one process, so that a crash or a hang ends no more than that.

    python -m benchmarks.hostile.run --help

Writes a line of JSON to the file `--outcome`. While it runs, `--progress` holds the number of the
case in hand: where a process ended that did not end by itself.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: GiB beyond what the process has when it begins.
_MEMORY_GIB = 6.0
_FINDINGS = 50


#: Hypothesis's own notes, where it is at work.
_NOT_OURS = ".hypothesis"


class Choices(random.Random):
    """A source of choices that takes them from bytes, and zeros when these are used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0

    def getrandbits(self, k: int, /) -> int:
        """The next bits of the data."""
        size = (k + 7) // 8
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece.ljust(size, b"\0"), "little") >> (8 * size - k)

    def random(self) -> float:
        """A number from 0 to 1, out of the next two bytes."""
        return self.getrandbits(16) / 2**16


def main() -> None:
    """Run the cases of a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--engine", choices=("random", "hypothesis", "atheris"), required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seconds", type=int, default=600)
    for place in ("source", "dataset", "outcome", "progress"):
        parser.add_argument(f"--{place}", type=Path, required=True)
    options = parser.parse_args()
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["conversion", "lundprobe_zarr"]):
            _import_targets()
    with tempfile.TemporaryDirectory() as folder:
        _run(options, Path(folder))


def _import_targets() -> Any:
    from benchmarks.hostile import judge, material, targets

    return judge, material, targets


def _run(options: argparse.Namespace, folder: Path) -> None:
    judge, material, targets = _import_targets()
    scratch, empty = folder / "scratch", folder / "empty"
    scratch.mkdir()
    empty.mkdir()
    places = (options.source.resolve(), options.dataset.resolve(), scratch)
    outcome, progress = options.outcome.resolve(), options.progress.resolve()
    os.chdir(empty)  # nothing may be written there
    target = targets.targets(material.Material(*places))[options.target]
    judge.limit_memory(_MEMORY_GIB)
    run = _Run(target, judge, empty, progress, options.first)
    begun = time.monotonic()
    if options.engine == "atheris":
        _atheris(run, options, folder, lambda: _write(run, begun, outcome))
    {"random": _random, "hypothesis": _hypothesis}[options.engine](run, options.cases)
    _write(run, begun, outcome)


def _write(run: _Run, begun: float, outcome: Path) -> None:
    about = {"cases": run.cases, "seconds": time.monotonic() - begun, "findings": run.findings}
    outcome.write_text(json.dumps(about))


class _Run:
    """Judges cases and keeps what is wrong with them, each kind once."""

    def __init__(self, target: Any, judge: Any, empty: Path, progress: Path, first: int) -> None:
        self.target, self.first = target, first
        self.cases = 0
        self.findings: dict[str, str] = {}
        self._judge, self._empty = judge, empty
        self._progress = progress.open("wb", buffering=0)

    def __call__(self, make: Callable[[], Any]) -> None:
        number = self.first + self.cases
        os.pwrite(self._progress.fileno(), b"%012d" % number, 0)
        self.cases += 1
        # In code that no signal reaches, the process is ended and the next one goes on behind it.
        faulthandler.dump_traceback_later(3 * self._judge.SECONDS, exit=True)
        case = make()
        found = self._judge.judge(self.target, case)
        there = [n for n in self._judge.strangers(self._empty) if n != _NOT_OURS]
        if found is None and there:
            found = f"wrote {there[0]}"
        faulthandler.cancel_dump_traceback_later()
        if found is not None and len(self.findings) < _FINDINGS:
            kind = found.partition(": ")[0]  # each once, whatever its message says of the case
            self.findings.setdefault(kind, f"case {number}: {found}: {repr(case)[:300]}")


def _random(run: _Run, cases: int) -> None:
    for number in range(run.first, run.first + cases):
        run(lambda number=number: run.target.make(random.Random(f"{run.target.name} {number}")))  # type: ignore[misc]


def _hypothesis(run: _Run, cases: int) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def try_all(rng: random.Random) -> None:
        run(lambda: run.target.make(rng))

    try_all()


def _atheris(
    run: _Run, options: argparse.Namespace, folder: Path, done: Callable[[], None]
) -> None:
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(run.target.seeds):
        (corpus / str(number)).write_bytes(seed)

    end = time.monotonic() + options.seconds

    def one(data: bytes) -> None:
        seeded = bool(run.target.seeds)
        run(lambda: data if seeded else run.target.make(Choices(data)))
        if run.cases >= options.cases or time.monotonic() > end:
            done()
            os._exit(0)

    limits = ["-seed=1", "-max_len=65536", "-rss_limit_mb=0", "-timeout=0", "-verbosity=0"]
    limits.append(str(corpus))
    atheris.Setup([sys.argv[0], *limits], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
