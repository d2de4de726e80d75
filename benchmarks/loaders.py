"""Batches by an iterable dataset, as `torch_dataset` makes it, and by a map-style one.

    python -m benchmarks.loaders --dataset FOLDER [--step 0.04] [--repeats 3]

The map-style dataset is asked for lists of (epoch, position), which a batch sampler makes of the
same order; it reads the patches of a batch in as many threads. `step` is what the training takes
for a batch, seconds: slept, as on an accelerator. Patches a second, the median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

import lundprobe_zarr as lp
from benchmarks.record import write_results
from lundprobe_zarr.patches import UniformSampling
from lundprobe_zarr.storage.decode_pool import cores
from lundprobe_zarr.stream.torch import collate

SIZE, BATCH, PATCHES = (16, 128, 128), 4, 200


class MapStyle(Dataset[Any]):
    """Patches by (epoch, position)."""

    def __init__(self, stream: lp.PatchStream) -> None:
        self.stream = stream
        self.pool: ThreadPoolExecutor | None = None

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Any]:
        """The patches of a batch."""
        self.pool = self.pool or ThreadPoolExecutor(cores())
        return list(self.pool.map(lambda place: self.stream._loader.load(*place), places))


class Batches:
    """The places of an epoch's batches, another epoch with every iteration."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, -1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.epoch += 1
        for first in range(0, self.length, BATCH):
            yield [(self.epoch, n) for n in range(first, min(first + BATCH, self.length))]


def rate(loader: Iterable[Any], step: float) -> float:
    """Patches a second of the second epoch, its start included."""
    for _ in loader:
        pass
    started, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch["patient_id"])
        time.sleep(step)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure each way, in turn; write benchmarks/results/loaders.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", default=str(work / "standard"))
    parser.add_argument("--step", type=float, default=0.04)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cohort = lp.open_cohort(options.dataset)
    sampling = UniformSampling(PATCHES // len(cohort))

    def stream() -> lp.PatchStream:
        return lp.PatchStream(
            cohort, SIZE, structures=("CTVT_427", "Rectum"), sampling=sampling, seed=1
        )

    def map_style(workers: int) -> DataLoader[Any]:
        patches = MapStyle(stream())
        order = Batches(len(patches.stream))
        return DataLoader(patches, batch_sampler=order, num_workers=workers, collate_fn=collate)

    ways: dict[str, Callable[[int], Iterable[Any]]] = {
        "map-style": map_style,
        "loader": lambda n: lp.torch_dataset(stream(), BATCH).loader(num_workers=n),
        "plain DataLoader": lambda n: DataLoader(
            lp.torch_dataset(stream(), BATCH), batch_size=None, num_workers=n
        ),
    }
    found = []
    for workers in (0, 2):
        for step in (0.0, options.step):
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, make in ways.items():
                    rates[way].append(rate(make(workers), step))
            medians = {way: round(statistics.median(r), 1) for way, r in rates.items()}
            found.append({"workers": workers, "step_s": step, "patches_per_s": medians})
            print(found[-1], flush=True)
    about = {"patch": list(SIZE), "batch": BATCH, "repeats": options.repeats, "usable": cores()}
    print(write_results("loaders", about | {"rates": found}))


if __name__ == "__main__":
    main()
