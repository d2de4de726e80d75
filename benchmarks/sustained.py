"""Patches read one after another: by a stream, by its peers, and by another tree of this package.

Each way has a process of its own. They take turns: a round has one epoch of each, and each round
begins with another one, so what disturbs the machine disturbs all. Full-size patches of 32×192×192
voxels, T2w alone and with three masks, from a warm page cache, and over HTTP from a server that
waits 20 ms before each answer.

- `stream_N`: `PatchStream(threads=N)`; `before_N`: the same of the tree `--against`.
- `limit_N`: decoding alone of the same chunks, out of memory, in N threads.
- `tensorstore`: the same boxes of T2w, four asked for at a time.
- `loader_N`: `torch_dataset(stream, 4).loader(num_workers=N)`.

Figures are per patch: wall time and processor time of the process and its children, ms. A ratio is
the median over rounds of one way's time and another's in the same round; of two epochs that take
turns, a busy machine disturbs wall times more than processor times.

    python -m benchmarks.sustained --dataset /tmp/bench/standard --against /tmp/earlier
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lundprobe_zarr import PatchStream, open_cohort, torch_dataset
from lundprobe_zarr.patches import BalancedSampling, Content, Plan
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.shard import ShardCodec

SIZE = (32, 192, 192)
MASKS = ("CTVT_427", "Rectum", "Bladder")
CASES = {"T2w": (), "T2w_and_masks": MASKS}
LATENCY = 0.02
#: Reads an epoch, and gives the number of its patches.
Epoch = Callable[[], int]


def main() -> None:
    """Measure and write benchmarks/results/sustained.json, or be one of the ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", default=str(work / "standard"))
    parser.add_argument("--against", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--per-patient", type=int, default=24)
    parser.add_argument("--only", choices=["local", "loader", "http"], default=None)
    parser.add_argument("--way", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--case", default="T2w", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        take_turns(epoch_of(options.way, options.dataset, CASES[options.case], options.per_patient))
        return
    from benchmarks.record import write_results

    figures = {"patch": "×".join(map(str, SIZE)), "masks": list(MASKS), "rounds": options.rounds}
    figures |= {"load_average_before": [round(load, 1) for load in os.getloadavg()]}
    figures |= measured(options)
    figures["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    print(write_results("sustained", figures))
    print(json.dumps(figures, indent=2))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every place and case."""
    from benchmarks.remote import served

    figures: dict[str, Any] = {}
    before = [None, options.against] if options.against else [None]
    local = [f"{'before' if tree else 'stream'}_{n}" for n in (1, 2) for tree in before]
    afar = [f"{'before' if tree else 'stream'}_8" for tree in before]
    for case in CASES:
        if options.only in (None, "local"):
            peers = ["tensorstore"] if case == "T2w" and find_spec("tensorstore") else []
            ways = [*local, "stream_3", "limit_1", "limit_2", *peers]
            figures[f"local_{case}"] = compared(ways, options, options.dataset, case)
        if options.only in (None, "http"):
            with served(Path(options.dataset), LATENCY) as server:
                figures[f"http_{case}"] = compared(afar, options, server.url, case)
    if options.only in (None, "loader"):
        ways = ["stream_2", "limit_2", "loader_0", "loader_2"]
        figures["loader_T2w"] = compared(ways, options, options.dataset, "T2w")
    return figures


def compared(
    ways: Sequence[str], options: argparse.Namespace, url: str, case: str
) -> dict[str, Any]:
    """Milliseconds of each way, and its ratios to the others."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with ExitStack() as stack:
        running = {w: stack.enter_context(started(w, options, url, case)) for w in ways}
        for number in range(options.rounds + 1):
            first = number % len(ways)
            for way in [*ways[first:], *ways[:first]]:
                seconds = turn(running[way])
                if number:  # the first round warms up
                    found[way].append(seconds)
    return {way: ratios(way, found) for way in ways}


def ratios(way: str, found: Mapping[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Wall and processor time of a way, and its speed in terms of the others'."""
    figures: dict[str, Any] = {}
    for place, kind in enumerate(("wall", "processor")):
        mine = [one[place] for one in found[way]]
        figures[kind] = {
            "ms_median": round(1000 * statistics.median(mine), 2),
            "ms_least": round(1000 * min(mine), 2),
            "speed_in_terms_of": {
                other: round(
                    statistics.median(t[place] / m for t, m in zip(theirs, mine, strict=True)), 3
                )
                for other, theirs in found.items()
                if other != way
            },
        }
    figures["patches_per_second"] = round(1000 / figures["wall"]["ms_median"], 1)
    return figures


def started(way: str, options: argparse.Namespace, url: str, case: str) -> subprocess.Popen[str]:
    """A process that reads an epoch for each line it gets."""
    tree = options.against if way.startswith("before") else Path(__file__).parents[1]
    # -P: only the tree is looked through for modules, not the folder of this file.
    command = [sys.executable, "-P", __file__, "--dataset", url, "--way", way, "--case", case]
    command += ["--per-patient", str(options.per_patient)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def turn(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Seconds of wall time and of processor time a patch, of one epoch."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wall, processor = json.loads(process.stdout.readline())
    return wall, processor


def take_turns(epoch: Epoch) -> None:
    """Read an epoch for every line of the standard input, and print what it took."""
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), _processor()
        count = epoch()
        spent = time.perf_counter() - wall, _processor() - processor
        print(json.dumps([one / count for one in spent]), flush=True)


def _processor() -> float:
    """Seconds of processor time, of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def epoch_of(way: str, url: str, masks: tuple[str, ...], per_patient: int) -> Epoch:
    """What a way does in its turn."""
    kind, _, number = way.partition("_")
    sampling = BalancedSampling(MASKS, per_patient=per_patient)
    threads = int(number) if kind in ("stream", "before") else None
    stream = PatchStream(
        open_cohort(url), SIZE, structures=masks, sampling=sampling, threads=threads
    )
    if kind == "limit":
        return decoding(stream, int(number))
    if kind == "tensorstore":
        return of_tensorstore(stream)
    if kind == "loader":
        loader = torch_dataset(stream, batch_size=4).loader(num_workers=int(number))
        return lambda: sum(len(batch["patient_id"]) for batch in again(stream, loader))
    return lambda: sum(1 for _ in again(stream, stream))


def again(stream: PatchStream, patches: Any) -> Any:
    """The same epoch once more."""
    stream.seek(0)
    return patches


def decoding(stream: PatchStream, threads: int) -> Epoch:
    """Decode the chunks of the stream's patches."""
    taken: list[tuple[ShardCodec, bytes]] = []
    original = ShardCodec.decode_chunk

    def noted(self: ShardCodec, data: Any, out: Any = None) -> Any:
        taken.append((self, bytes(data)))
        return original(self, data, out)

    ShardCodec.decode_chunk = noted  # type: ignore[method-assign]
    count = sum(1 for _ in stream)
    ShardCodec.decode_chunk = original  # type: ignore[method-assign]
    scratch, pool = threading.local(), ThreadPoolExecutor(threads)

    def decode(chunk: tuple[ShardCodec, bytes]) -> None:
        codec, data = chunk
        kept = vars(scratch).setdefault(codec.dtype, {})
        if codec.chunk not in kept:
            kept[codec.chunk] = np.empty(codec.chunk, codec.dtype)
        original(codec, data, kept[codec.chunk])

    def epoch() -> int:
        list(pool.map(decode, taken, chunksize=8))
        return count

    return epoch


def of_tensorstore(stream: PatchStream) -> Epoch:
    """Read the boxes of the stream's patches."""
    import tensorstore

    cohort, todo = stream.plan.cohort, []
    context = {"data_copy_concurrency": {"limit": len(os.sched_getaffinity(0))}}
    for patient_id in cohort.ids:
        reader = StoreReader.open(cohort.location, patient_id)
        path = reader.location.path(f"patients/{patient_id}.zarr/mri/image/")
        kvstore = {"driver": "file", "path": path}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore, "context": context})
        plan = Plan(cohort[[patient_id]], Content(), SIZE, sampling=stream.plan.sampling)
        boxes = (tuple(map(slice, s, np.add(s, SIZE))) for s in plan.starts(reader.metadata))
        todo += [array.result()[(0, *box)].read for box in boxes]

    def epoch() -> int:
        waiting = []
        for read in todo:
            waiting.append(read())
            if len(waiting) > 4:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
        return len(todo)

    return epoch


if __name__ == "__main__":
    main()
