"""Conversions killed at random instants, on a disk and on their way to a bucket.

The command runs as a process of its own and is killed with all of its workers (SIGKILL), at
instants spread evenly over the time that a run takes which nothing disturbs, and started again,
until a run comes to its end before it is killed. After each kill every store that can be opened is
compared byte for byte with those of an undisturbed conversion, and the dataset is looked at as a
reader does; in the end its content, all its objects and their names are those of the undisturbed
one. The source is a tiny phantom; some of the kills hit the replacement of patients whose source
has changed. The bucket is on an S3 server (moto) on loopback. Any deviation ends the benchmark.

    python -m benchmarks.faults --kills 90 --bucket-kills 30
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import write_results
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location
from tests.faults.killing import (
    Kill,
    Reference,
    Target,
    delays,
    kill,
    killed_until_done,
    s3_target,
    start,
    write_changed,
)

PATIENTS, EXTENDED = 2, 1


def main() -> None:
    """Run and write benchmarks/results/faults.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=90, help="on a disk")
    parser.add_argument("--bucket-kills", type=int, default=30, help="on the way to a bucket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="conversions at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    print(write_results("faults", found))
    for name, value in found.items():
        print(f"{name}: {value}")


@dataclass(frozen=True)
class Scene:
    """What is converted where: into nothing, or over the conversion of other files."""

    source: Path
    wanted: Reference
    old: Path | None = None
    before: tuple[Reference, ...] = ()


def measure(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    seed, jobs = options.seed, options.jobs
    source = write_phantom(home / "source", patients=PATIENTS, extended=EXTENDED, seed=seed)
    changed = write_changed(source, seed + 1, PATIENTS, EXTENDED, home / "changed")
    disk = Target(str(home / "disk"), home / "scratch")
    old = undisturbed(source, disk.beside("old"))
    new = undisturbed(changed, disk.beside("new"))
    fresh = Scene(source, old)
    replaced = Scene(changed, new, home / "old", (old,))
    figures = {
        "patients": PATIENTS + EXTENDED,
        "disk": rounds(disk, [fresh, replaced], options.kills, seed, jobs),
    }
    with s3_target(home / "scratch") as bucket:
        figures["bucket"] = rounds(bucket, [fresh, replaced], options.bucket_kills, seed, jobs)
    return figures


def undisturbed(source: Path, target: Target) -> Reference:
    """A conversion that nothing disturbs."""
    run(source, target, 2)
    return Reference.of(target.location)


def run(source: Path, target: Target, workers: int) -> float:
    """Convert, and say how many seconds it took."""
    started = time.perf_counter()
    process = start(source, target, "--workers", workers)
    status = process.wait()
    seconds = time.perf_counter() - started
    printed = kill(process)
    if status:
        raise SystemExit(f"a conversion that nothing disturbed ended with {status}:\n{printed}")
    return seconds


def undisturbed_seconds(source: Path, place: Target, workers: int, jobs: int) -> float:
    """How long a conversion takes that nothing disturbs but others at the same time."""
    with ThreadPoolExecutor(jobs) as pool:
        targets = [place.beside(f"timed-{workers}-{job}") for job in range(jobs)]
        return max(pool.map(lambda target: run(source, target, workers), targets))


def rounds(
    place: Target, scenes: Sequence[Scene], wanted: int, seed: int, jobs: int
) -> dict[str, Any]:
    """Kill conversions, each until it is done, with one worker and two, until there were enough."""
    timed = {w: undisturbed_seconds(scenes[0].source, place, w, jobs) for w in (1, 2)}
    seconds = dict(timed)
    kills: dict[str, list[Kill]] = {"new patients": [], "patients replaced": []}
    ways = itertools.product(zip(kills, scenes, strict=True), timed)
    waiting, ended = enumerate(itertools.cycle(ways)), []

    def work(job: int) -> None:
        while sum(map(len, kills.values())) < wanted:
            number, ((name, scene), workers) = next(waiting)
            target = place.beside(f"round-{number}")
            instants = delays((seed, name, workers, number), seconds[workers])
            some, took = one_round(scene, target, instants, workers)
            kills[name] += some
            if not some:  # the machine is less busy than it was
                seconds[workers] = took
            ended.append(number)
            print(f"{place.url}: {sum(map(len, kills.values()))} kills", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))
    return figures(timed, kills, len(ended))


def figures(
    timed: Mapping[int, float], kills: Mapping[str, Sequence[Kill]], finished: int
) -> dict[str, Any]:
    """What came of all kills in one place."""
    every = [k for some in kills.values() for k in some]
    return {
        "seconds_undisturbed": {f"workers {w}": round(s, 1) for w, s in timed.items()},
        "kills": {name: len(some) for name, some in kills.items()},
        "killed_while": Counter(k.phase for k in every),
        "a_reader_then_found": {
            name: Counter(k.reader for k in some) for name, some in kills.items()
        },
        "stores_compared_and_whole": sum(k.compared for k in every),
        "finished_patients_at_kills_none_converted_again": sum(k.finished for k in every),
        "conversions_ended_all_as_undisturbed": finished,
    }


def one_round(
    scene: Scene, target: Target, instants: Iterator[float], workers: int
) -> tuple[list[Kill], float]:
    """Kill one conversion until it is done."""
    if scene.old is not None:
        fill(scene.old, target)
    outcome = killed_until_done(
        scene.source,
        target,
        scene.wanted,
        instants,
        *("--workers", workers),
        before=scene.before,
    )
    if target.location.is_local:
        shutil.rmtree(target.url)
    return outcome


def fill(old: Path, target: Target) -> None:
    """Put a dataset where another is to take its place."""
    if target.location.is_local:
        shutil.copytree(old, target.url)
    else:
        report = copy_dataset(Location(old), target.location)
        assert not report.failures


if __name__ == "__main__":
    main()
