"""Damage on disks and on the way: bits that flip, servers that fail, stall or answer wrongly.

A tiny dataset of two patients is converted. Then single bits of its objects are flipped, one at a
time, and it is read and validated; and it is read from and copied to servers of HTTP and S3 behind
a proxy that spoils a part of the requests. A reading either gives what it gave before or raises an
error: anything else fails the run. All of it is seeded.

    python -m benchmarks.damage
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, write_results
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location
from tests.faults.flips import (
    FLIPS,
    UNNOTICED,
    Bench,
    cohort_digest,
    draw,
    patient_digest,
    summary,
)
from tests.faults.proxy import (
    ON_S3,
    ON_WEB,
    UPLOADS,
    Choice,
    Remote,
    lasting,
    s3_behind,
    sprinkled,
    web_behind,
    within,
)

#: Part of the requests that are spoilt, and seconds without a byte that are waited for.
SHARE, TIMEOUT = 0.2, 1.0
#: The same while copying, which takes hundreds of requests.
FEWER = 0.05
#: Seconds after which something is taken to hang.
HANGS = 240.0


def main() -> None:
    """Try everything and write benchmarks/results/damage.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="part of the flips to try")
    parser.add_argument("--rounds", type=int, default=4, help="readings and copies a server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("flips", "network"), help="keep the other's figures")
    options = parser.parse_args()
    figures = json.loads((RESULTS / "damage.json").read_text())["figures"] if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = converted(Path(folder))
        if options.only != "network":
            figures["flips"] = flips(dataset, options.scale, options.seed)
        if options.only != "flips":
            figures["network"] = network(dataset, options.rounds, options.seed)
    print(write_results("damage", figures))


def converted(folder: Path) -> Path:
    """A dataset of a tiny base patient and an extended one."""
    source = write_phantom(folder / "source", patients=1, extended=1)
    for patient in take_inventory(source).patients:
        assert convert_patient(patient, folder / "dataset", "standard").error is None
    finalise(folder / "dataset")
    return folder / "dataset"


def flips(dataset: Path, scale: float, seed: int) -> dict[str, Any]:
    """What noticed flipped bits, by kind of object."""
    counts = {kind: max(1, round(n * scale)) for kind, n in FLIPS.items()}
    bench, started = Bench(dataset), time.perf_counter()
    outcomes = []
    for number, flip in enumerate(draw(dataset, counts, seed), 1):
        outcomes.append(bench.try_out(flip))
        assert outcomes[-1].noticed != UNNOTICED, outcomes[-1]
        if number % 100 == 0:
            print(f"{number} flips, {time.perf_counter() - started:.0f} s", flush=True)
    table = summary(outcomes)
    for kind, row in table.items():
        print(f"{kind}: {row}", flush=True)
    return {"total": len(outcomes), **table}


def network(dataset: Path, rounds: int, seed: int) -> dict[str, Any]:
    """How readings and copies end while servers fail."""
    figures: dict[str, Any] = {
        "part_of_requests_spoilt": {"reading": SHARE, "copying": FEWER},
        "timeout_s": TIMEOUT,
        "limit_of_hangs_s": HANGS,
    }
    bench = Bench(dataset)
    patient = bench.ids[0]
    sound = read(dataset, patient, {})
    for name, behind, faults in (("http", web_behind, ON_WEB), ("s3", s3_behind, ON_S3)):
        with behind(dataset) as remote:

            def reading(remote: Remote = remote) -> str:
                same = read(remote.url, patient, remote.reach(timeout=TIMEOUT)) == sound
                return "right" if same else "wrong"

            tries = [sprinkled(faults, SHARE, seed + n, ("GET", "HEAD")) for n in range(rounds)]
            figures[f"read_{name}_with_passing_faults"] = attempt(remote, tries, reading)
            tries = [lasting(fault, f"{patient}.zarr/mri/image/c/") for fault in faults]
            figures[f"read_{name}_with_lasting_faults_of_one_shard"] = attempt(
                remote, tries, reading
            )
            if name == "s3":
                figures["copy_to_s3_with_passing_faults"] = copies(remote, dataset, rounds, seed)
            tries = [sprinkled(faults, FEWER, seed + n, ("GET", "HEAD")) for n in range(rounds)]
            figures[f"copy_from_{name}_with_passing_faults"] = copies_from(remote, dataset, tries)
    for what, found in figures.items():
        print(f"{what}: {found}", flush=True)
    return figures


def read(url: str | Path, patient: str, options: dict[str, Any]) -> tuple[str, str]:
    """Digests of all tables and of all of one patient."""
    return cohort_digest(url, options), patient_digest(url, patient, options)


def attempt(remote: Remote, choices: list[Choice], act: Callable[[], str]) -> dict[str, Any]:
    """How `act` ends while requests meet the faults chosen: right, or with an error."""
    ends: Counter[str] = Counter()
    met: Counter[str] = Counter()
    longest = 0.0
    for choice in choices:
        started = time.perf_counter()
        with remote.proxy.spoiling(choice) as some:
            try:
                ends[within(HANGS, act)] += 1
            except LundProbeError as error:
                ends["error" if remote.url in str(error) else "error that names nothing"] += 1
        longest = max(longest, time.perf_counter() - started)
        met += some
    assert not set(ends) & {"wrong", "error that names nothing"}, (ends, met)
    return {"ends": dict(ends), "longest_s": round(longest, 1), "faults_met": dict(met)}


def copies(remote: Remote, dataset: Path, rounds: int, seed: int) -> dict[str, Any]:
    """How copies to a bucket end: all there and sound, or with failures that are reported."""
    number = iter(range(rounds))

    def copy() -> str:
        place = Location(f"s3://faults/copy-{next(number)}", remote.reach(timeout=5))
        report = copy_dataset(Location(dataset), place)
        remote.proxy.choose = lambda method, path: None
        if report.failures:
            return "failure reported"
        return "wrong" if validate(place, deep=True).problems else "right"

    tries = [sprinkled(UPLOADS, FEWER, seed + n, ("PUT",)) for n in range(rounds)]
    return attempt(Remote("s3://faults", remote.options, remote.proxy), tries, copy)


def copies_from(remote: Remote, dataset: Path, tries: list[Choice]) -> dict[str, Any]:
    """How copies from a server to a disk end: byte for byte, or with failures reported."""

    def copy() -> str:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "copy"
            report = copy_dataset(remote.location(timeout=TIMEOUT), Location(place))
            if report.failures:
                return "failure reported"
            return "right" if same_files(place, dataset) else "wrong"

    return attempt(remote, tries, copy)


def same_files(one: Path, other: Path) -> bool:
    """Whether every file of a copy is that of the original, side files aside.

    Nothing proves those: they are for people, and for tools that are not ours.
    """
    names = [f.relative_to(one) for f in one.rglob("*") if f.is_file() and f.parent != one]
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


if __name__ == "__main__":
    main()
