"""What each part of the training read path is worth, by leaving it out.

The same epoch of patches is read by today's code and by variants that lack one part. Patches are
of full size, 32×192×192 voxels of T2w with three masks. Variants run in one process, interleaved:
every round runs all of them, each round starting with another one.

- `today_again`: the code unchanged; its ratio to `today` shows the noise.
- `alone`: every patch is read alone, not with others of its patient.
- `all_at_once`: reading threads decode what a server sent, however many they are.
- `no_buffer_pool`: sample arrays come from `numpy.empty` and `numpy.zeros`.
- `no_local_files`: local chunks are read as new `bytes` by `Location.read_ranges`, not into
  scratch memory through open descriptors.

Each figure is per patch, of reading without training: wall time, and processor time of this
process. The HTTP server is another process on the same machine; its processor time is not counted.
Ratios are variant / `today` of the same round; below 1 the variant is faster.

    python -m benchmarks.ablation --dataset /tmp/bench/standard
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import remote
from benchmarks.record import write_results
from lundprobe_zarr import PatchStream, open_cohort
from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.patches import BalancedSampling
from lundprobe_zarr.stores.reader import StoreReader

SIZE = (32, 192, 192)
MASKS = ("CTVT_427", "Rectum", "Bladder")
LATENCY = 0.02
#: A variant is as good as today's code if its median ratio is at most this.
WITHIN = 1.05


def main() -> None:
    """Measure and write benchmarks/results/ablation.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--per-patient", type=int, default=24)
    parser.add_argument("--threads", type=int, default=None, help="default: as streams have")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "patch": "×".join(map(str, SIZE)),
        "masks": list(MASKS),
        "rounds": options.rounds,
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
    }
    cohort = open_cohort(options.dataset)
    figures["disk"] = measured(cohort, options)
    with remote.served(options.dataset, LATENCY) as server:
        cohort = open_cohort(server.url)
        figures["http_20_ms"] = measured(cohort, options)
    figures["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    print(write_results("ablation", figures))
    print(json.dumps(figures, indent=2))


def measured(cohort: Cohort, options: argparse.Namespace) -> dict[str, Any]:
    """Time all variants in turn, `rounds` times; the round before is not counted."""
    names = list(VARIANTS)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(options.rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with VARIANTS[name]():
                found = epoch(cohort, options.per_patient, options.threads)
            if number:
                seconds[name].append(found)
    today = seconds["today"]
    return {name: compared(found, today) for name, found in seconds.items()}


def epoch(cohort: Cohort, per_patient: int, threads: int | None) -> tuple[float, float]:
    """Seconds of wall time and of processor time per patch of one epoch."""
    sampling = BalancedSampling(MASKS, per_patient=per_patient)
    stream = PatchStream(cohort, SIZE, structures=MASKS, sampling=sampling, seed=3, threads=threads)
    wall, processor = time.perf_counter(), time.process_time()
    count = sum(sample["image"].size > 0 for sample in stream)
    spent = time.perf_counter() - wall, time.process_time() - processor
    return spent[0] / count, spent[1] / count


def compared(found: list[tuple[float, float]], today: list[tuple[float, float]]) -> dict[str, Any]:
    """Milliseconds of a variant and its ratios to today's code in the same rounds."""
    result: dict[str, Any] = {}
    for place, kind in enumerate(("wall", "processor")):
        values = [one[place] for one in found]
        ratios = [v / base[place] for v, base in zip(values, today, strict=True)]
        quarters = statistics.quantiles(ratios, n=4)
        middle = statistics.median(ratios)
        result[kind] = {
            "ms_median": round(1000 * statistics.median(values), 3),
            "ms_least": round(1000 * min(values), 3),
            "ratio_median": round(middle, 3),
            "ratio_quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
            "ratio_of_least": round(min(values) / min(base[place] for base in today), 3),
            "within_5_percent": middle <= WITHIN,
        }
    return result


@contextmanager
def today() -> Iterator[None]:
    """Change nothing."""
    yield


@contextmanager
def alone() -> Iterator[None]:
    """Read every patch alone."""
    with patch("lundprobe_zarr.stream.prefetch._TOGETHER", 1):
        yield


@contextmanager
def all_at_once() -> Iterator[None]:
    """Decode what a server sent in as many threads as there are."""
    with patch("lundprobe_zarr.stores.reader.decode_in_turn", lambda work: work()):
        yield


@contextmanager
def no_buffer_pool() -> Iterator[None]:
    """Leave out the pool of sample arrays."""
    with (
        patch("lundprobe_zarr.stream.patch.empty", np.empty),
        patch("lundprobe_zarr.stream.patch.zeros", np.zeros),
    ):
        yield


@contextmanager
def no_local_files() -> Iterator[None]:
    """Leave out scratch memory and open descriptors of local files."""

    def read_local(self: StoreReader, wanted: Any, part: Any, *_: Any) -> Any:
        return np.frombuffer(self._read_ranges([wanted], [part])[0], np.uint8)

    with patch.object(StoreReader, "_read_local", read_local):
        yield


VARIANTS = {
    "today": today,
    "today_again": today,
    "alone": alone,
    "all_at_once": all_at_once,
    "no_buffer_pool": no_buffer_pool,
    "no_local_files": no_local_files,
}


if __name__ == "__main__":
    main()
