"""Patches through Hugging Face `datasets`, against our own reader and against its Nifti feature.

Patches are read by both with the same number of threads ahead, turn and turn about in one run: of a
local disk, and over the S3 protocol from a server in a process of its own that waits 20 ms before
each answer. `own` is `patches.Plan.read`, what every view of ours reads with; `datasets` is
`load_dataset(…, "patches", streaming=True).with_format("numpy")`. The Nifti feature has the same
voxels to give out of the source's `.nii.gz`. Peak memory is that of a fresh process.

    python -m benchmarks.huggingface --dataset /tmp/lundprobe-bench/standard \
        --source /tmp/lundprobe-bench/source
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets
import numpy as np

import lundprobe_zarr as lp
from benchmarks.cohort import simulate
from benchmarks.record import write_results
from lundprobe_zarr.patches import BalancedSampling, Content, Plan
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.patch import read_items
from tests.anywhere.servers import file_server

LATENCY = 0.02
SHAPE = (32, 192, 192)
MASKS = ("CTVT_427", "PTVT_427", "Rectum", "Bladder")
THREADS = 8
#: Patches a patient: enough that opening, which both do in each run, does not count.
PER_PATIENT = 32
COLUMNS = ["patient_id", "start", "image", "mask", "present"]


def main() -> None:
    """Measure and write benchmarks/results/huggingface.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--source", type=Path, default=work / "source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=["datasets", "nifti"], help="used by itself")
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory(options.memory_of, options.dataset, options.source)))
        return
    figures = measure(options.dataset, options.source, options.repeats)
    print(write_results("huggingface", figures))
    print(json.dumps(figures, indent=2))


def measure(dataset: Path, source: Path, repeats: int) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {
        "datasets": version("datasets"),
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
        "patch": f"{'×'.join(map(str, SHAPE))} of T2w and {len(MASKS)} masks",
        "threads_ahead": THREADS,
        "repeats": repeats,
        "local": compare(str(dataset), {}, PER_PATIENT, repeats),
    }
    with served(dataset) as (url, options):
        figures["s3_20_ms"] = compare(url, options, PER_PATIENT, repeats)
    figures["nifti_feature"] = against_nifti(dataset, source)
    figures["row_overhead_us"] = row_overhead(dataset)
    figures["first_of_467_volumes"] = first_row()
    return figures


def sampling(per_patient: int) -> BalancedSampling:
    """Patches around the target."""
    return BalancedSampling(MASKS[:1], 1.0, per_patient)


def compare(place: str, options: dict[str, Any], per_patient: int, repeats: int) -> dict[str, Any]:
    """Patches a second of both, in turn; the voxels are compared once."""
    ways: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "own": lambda: own_patches(place, options, per_patient),
        "datasets": lambda: stream(place, options, per_patient),
    }
    count = 0
    for one, other in zip(*(way() for way in ways.values()), strict=True):
        count += 1
        for name in ("image", "mask", "start"):
            np.testing.assert_array_equal(one[name], other[name])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats):
        for name in sorted(ways, reverse=bool(number % 2)):
            started = time.perf_counter()
            taken = sum(row["image"].size > 0 for row in ways[name]())
            seconds[name].append(time.perf_counter() - started)
            assert taken == count
    rates = {name: [count / s for s in found] for name, found in seconds.items()}
    ratios = [b / a for a, b in zip(rates["own"], rates["datasets"], strict=True)]
    return {
        "patches": count,
        **{f"{name}_per_second": spread(found) for name, found in rates.items()},
        "datasets_to_own": spread(ratios),
    }


def own_patches(place: str, options: dict[str, Any], per_patient: int) -> Iterator[dict[str, Any]]:
    """The patches of the plan, `THREADS` of them begun ahead; each patient is opened once."""
    cohort = lp.open_cohort(place, options)
    content = Content(modalities=("T2w",), structures=MASKS)
    plan = Plan(cohort, content, SHAPE, sampling=sampling(per_patient))
    readers = {i: StoreReader.open(cohort.location, i) for i in cohort.ids}
    waiting: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for index in range(len(plan)):
            item = plan.item(0, index)
            waiting.append(pool.submit(read_items, plan, readers[item.patient_id], [item]))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def stream(place: str, options: dict[str, Any], per_patient: int) -> Iterator[dict[str, Any]]:
    """The same patches through `datasets`, opening included."""
    loaded = lp.load_dataset(
        place,
        "patches",
        split="base+extended",
        streaming=True,
        storage_options=options,
        patch_size=SHAPE,
        modalities=["T2w"],
        structures=list(MASKS),
        sampling=sampling(per_patient),
        columns=COLUMNS,
        read_ahead=THREADS,
    )
    return iter(loaded.with_format("numpy"))


@contextmanager
def served(dataset: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The dataset in a bucket of an S3 server in another process: URL and storage options."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(dataset, there))
    process.start()
    try:
        yield "s3://bucket/lund-probe", {"anon": True, "endpoint_url": here.recv()}
    finally:
        here.send("end")
        process.join()


def serve(dataset: Path, pipe: Connection) -> None:
    """Serve until told to end.

    Reading an object of a public bucket, or a range of it, is a GET of its path: a file server
    does, and is as fast as a disk, where moto takes a second for a range of a large object.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bucket").mkdir()
        (Path(folder) / "bucket" / "lund-probe").symlink_to(dataset.absolute())
        with file_server(Path(folder)) as (url, traffic):
            traffic.latency = LATENCY
            pipe.send(url)
            pipe.recv()


def against_nifti(dataset: Path, source: Path) -> dict[str, Any]:
    """Seconds a patch and peak memory of both, each in a process of its own."""
    found = {}
    for name in ("datasets", "nifti"):
        command = [sys.executable, "-m", "benchmarks.huggingface", "--memory-of", name]
        command += ["--dataset", str(dataset), "--source", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    ratio = found["nifti"]["seconds_a_patch"] / found["datasets"]["seconds_a_patch"]
    return found | {"times_faster": round(ratio, 1)}


def memory(name: str, dataset: Path, source: Path) -> dict[str, Any]:
    """Seconds a patch, and this process's peak memory before and after; both know the places."""
    rows = stream(str(dataset), {}, 16)
    places = [(row["patient_id"], tuple(row["start"])) for row in unread(dataset)][:3]
    before = peak_mib()
    started = time.perf_counter()
    patches = nifti_patches(source, places) if name == "nifti" else rows
    count = sum(row["image"].size > 0 for row in patches)
    seconds = (time.perf_counter() - started) / count
    return {
        "patches": count,
        "seconds_a_patch": round(seconds, 4),
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
    }


def unread(dataset: Path) -> Any:
    """Patches whose voxels are left where they are."""
    return lp.load_dataset(
        dataset, "patches", split="base+extended", streaming=True, patch_size=SHAPE,
        sampling=sampling(16),
    )  # fmt: skip


def peak_mib() -> int:
    """Most memory that this process has had; of Linux, which counts from its start."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return round(int(line) / 1024)


def nifti_patches(source: Path, places: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same boxes out of the source's files, through `datasets`' Nifti feature, streamed."""
    names = ("image", *(f"mask_{m}" for m in MASKS))
    rows = []
    for patient_id, _ in places:
        (folder,) = source.glob(f"*Part/{patient_id}/MR_StorT2")
        rows.append({name: str(folder / f"{name}.nii.gz") for name in names})
    features = datasets.Features({name: datasets.Nifti() for name in names})
    loaded = datasets.Dataset.from_list(rows).cast(features).to_iterable_dataset()
    for row, (_, start) in zip(loaded, places, strict=True):
        box = tuple(slice(a, a + n) for a, n in zip(start, SHAPE, strict=True))[::-1]
        voxels = [np.asarray(row[name].dataobj[box]).T for name in names]
        yield {"image": voxels[0], "mask": np.stack(voxels[1:])}


def row_overhead(dataset: Path) -> dict[str, float]:
    """Microseconds a row whose voxels nobody looks at."""
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), 467)
        volumes = lp.load_dataset(folder, "volumes", split="base+extended", streaming=True)
        patients = lp.load_dataset(folder, "patients", split="base+extended", streaming=True)
        found = {"volumes": each(volumes), "patients": each(patients)}
    patches = lp.load_dataset(
        dataset, "patches", split="base+extended", streaming=True, patch_size=SHAPE,
        sampling=sampling(1000),
    )  # fmt: skip
    slices = lp.load_dataset(dataset, "slices", split="base+extended", streaming=True)
    return found | {"slices": each(slices), "patches": each(patches)}


def each(rows: Any) -> float:
    """Microseconds a row, the best of three passes after one that does not count."""
    count, seconds = sum(1 for _ in rows), []
    for _ in range(3):
        started = time.perf_counter()
        sum(1 for _ in rows)
        seconds.append(time.perf_counter() - started)
    return round(1e6 * min(seconds) / count, 1)


def first_row() -> dict[str, Any]:
    """Requests to a web server until the first row of 467 volumes, both ways to ask for it."""
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), 467)
        with file_server(Path(folder)) as (url, traffic):
            ways: dict[str, Callable[[], Any]] = {
                "lundprobe_zarr.load_dataset": lambda: lp.load_dataset(
                    url, "volumes", split="base", streaming=True
                ),
                "datasets.load_dataset": lambda: datasets.load_dataset(
                    "lundprobe",
                    "volumes",
                    data_files=f"{url}/lundprobe.json",
                    split="base",
                    streaming=True,
                ),
            }
            found = {}
            for name, load in ways.items():
                with traffic.counted() as asked:
                    next(iter(load()))
                found[name] = [f"{r.method} {r.path.rpartition('/')[2]}" for r in asked]
    return {name: {"requests": len(asked), "asked": asked} for name, asked in found.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
