"""Converting full-size patients: time against a floor, memory, size, files; looking at them, too.

The floor is what no converter can do without: gunzip every file with the fastest decoder
available and Blosc-encode every array with the codec and chunks the store has, on as many
worker processes, and nothing else: no hashing, checking, writing, reading back or describing.
A second floor also hashes what every verified conversion has to: each file as it is stored and
uncompressed, by SHA-256, once each. Floors and conversion alternate in one run; the ratios quoted
are the medians over its rounds. With few patients, the end of a run, when one core waits for the
last patient, weighs much.

    python -m benchmarks.conversion --work /tmp/lundprobe-bench
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.record import write_results
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store

PARTS = ("conversion", "looking")


def main() -> None:
    """Measure; write results/conversion.json and, of looking, conversion_looking.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--extended", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    options = parser.parse_args()
    source = options.work / f"source-{options.patients}-{options.extended}"
    if not source.exists():
        write_phantom(
            source,
            patients=options.patients,
            extended=options.extended,
            size="full",
            workers=options.workers,
        )
    standard = options.work / "standard"
    if "conversion" in options.only:
        report(measure(source, options), "")
    elif not standard.exists():
        convert(source, standard, "standard", options.workers)
    if "looking" in options.only:
        report(looked_at(source, standard, options.workers), "_looking")


def report(figures: dict[str, Any], part: str) -> None:
    """Write and print figures."""
    print(write_results("conversion", figures, part))
    for name, value in figures.items():
        print(f"{name}: {value}")


def measure(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    rounds: dict[str, list[float]] = {"conversion": [], "floor": [], "floor_with_sha256": []}
    peaks = []
    for _ in range(options.repeats):
        converted = convert(source, options.work / "standard", "standard", options.workers)
        stores = open_stores(options.work / "standard")
        rounds["conversion"].append(converted["seconds"])
        rounds["floor"].append(floor(source, stores, options.workers, hashed=False))
        rounds["floor_with_sha256"].append(floor(source, stores, options.workers, hashed=True))
        peaks.append(converted["peak_worker_mib"])
    figures: dict[str, Any] = {
        "patients": len(stores),
        "workers": options.workers,
        "floor_decoder": fastest_decoder(source).__module__,
        **{f"seconds_{name}": [round(s, 2) for s in found] for name, found in rounds.items()},
        **{
            f"ratio_to_{name}_median": round(
                statistics.median(map(truediv, rounds["conversion"], rounds[name])), 3
            )
            for name in ("floor", "floor_with_sha256")
        },
        "peak_worker_mib": max(peaks),
        "standard": sizes(options.work / "standard"),
    }
    for precision in ("compact", "lossless"):
        outcome = convert(source, options.work / precision, precision, options.workers)
        figures[precision] = sizes(options.work / precision) | {
            "seconds": round(outcome["seconds"], 2),
            "peak_worker_mib": outcome["peak_worker_mib"],
        }
    return figures


def convert(source: Path, destination: Path, precision: str, workers: int) -> dict[str, Any]:
    """Run the command as a user would; wall seconds, and the largest memory of a worker."""
    shutil.rmtree(destination, ignore_errors=True)  # of another source, perhaps
    return command("convert", source, destination, "--precision", precision, "--workers", workers)


def looked_at(source: Path, dataset: Path, workers: int) -> dict[str, Any]:
    """Both depths of `validate`, and `repair` of one patient, found by sizes or by every byte."""
    threads = "--workers", workers
    figures = {
        "validate": command("validate", dataset, *threads),
        "validate_deep": command("validate", dataset, "--deep", *threads),
    }
    shard = min(dataset.glob("patients/*/mri/image/c/0/0/0/0"))
    with shard.open("r+b") as file:
        file.truncate(100)
    figures["repair_a_truncated_shard"] = command("repair", source, dataset, *threads)
    shard = min(dataset.glob("patients/*/mri/image/c/0/0/0/0"))
    with shard.open("r+b") as file:
        file.seek(1000)
        bit = bytes([file.read(1)[0] ^ 1])
        file.seek(1000)
        file.write(bit)
    figures["repair_a_flipped_bit"] = command("repair", source, dataset, "--deep", *threads)
    sizes_mb = {k: v for k, v in sizes(dataset).items() if k.endswith("_mb")}
    return {
        "workers": workers,
        **sizes_mb,
        "seconds": {name: round(figure["seconds"], 2) for name, figure in figures.items()},
    }


def command(name: str, *arguments: object) -> dict[str, Any]:
    """Run one of ours; wall seconds, and the largest memory of a worker."""
    words = [sys.executable, "-m", "lundprobe_zarr", name, *map(str, arguments)]
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        peak = watch_memory(process)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - started, "peak_worker_mib": round(peak / 2**20)}


def watch_memory(process: subprocess.Popen[bytes]) -> int:
    """Largest resident memory of any child of a process, sampled until it ends."""
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            try:
                children = psutil.Process(process.pid).children(recursive=True)
                peak[0] = max([peak[0], *(c.memory_info().rss for c in children)])
            except psutil.NoSuchProcess:
                continue  # ended between being listed and being asked

    watcher = threading.Thread(target=sample)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    return peak[0]


def open_stores(dataset: Path) -> list[StoreMetadata]:
    """Metadata of every store of a converted dataset."""
    location = Location(dataset)
    table = read_table(location, open_manifest(location), "patients")
    return [open_store(location, i) for i in table.column("patient_id").to_pylist()]


def sizes(dataset: Path) -> dict[str, Any]:
    """Bytes against the source's, and files a store, by part."""
    location = Location(dataset)
    rows = read_table(location, open_manifest(location), "patients").to_pylist()
    files: dict[str, int] = {}
    for row in rows:
        count = len(location.find(row["store"]))
        files[row["part"]] = max(files.get(row["part"], 0), count)
    source, stored = (sum(r[f"{k}_bytes"] for r in rows) for k in ("source", "store"))
    return {
        "source_mb": round(source / 1e6, 1),
        "store_mb": round(stored / 1e6, 1),
        "ratio": round(stored / source, 3),
        "most_files_a_store": files,
    }


def fastest_decoder(source: Path) -> Any:
    """`open` of whichever gzip reader is quickest on one of the files."""
    from gzip import open as stdlib_open

    from isal.igzip import open as isal_open
    from zlib_ng.gzip_ng import open as zlib_ng_open

    file = next(source.rglob("MR_StorT2/image.nii.gz"))

    def seconds(opener: Any) -> float:
        started = time.perf_counter()
        with opener(file) as stream:
            while stream.read(1 << 24):
                pass
        return time.perf_counter() - started

    return min((stdlib_open, isal_open, zlib_ng_open), key=seconds)


def floor(source: Path, stores: list[StoreMetadata], workers: int, hashed: bool) -> float:
    """Wall seconds of a floor, on a pool of fresh processes, largest patient first."""
    ordered = sorted(stores, key=lambda s: -sum(r.bytes for _, r in s.records))
    opener = fastest_decoder(source)
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in [pool.submit(floor_of_patient, source, s, opener, hashed) for s in ordered]:
            future.result()
    return time.perf_counter() - started


def floor_of_patient(source: Path, store: StoreMetadata, opener: Any, hashed: bool) -> None:
    """Gunzip and encode every volume of one patient, and hash its files if `hashed`."""
    for array in store.arrays.values():
        for record in array.sources:
            with opener(source / record.path) as stream:
                data = stream.read()
            if hashed:
                hashlib.sha256((source / record.path).read_bytes()).hexdigest()
                hashlib.sha256(data).hexdigest()
            dtype, count = np.dtype(record.dtype), int(np.prod(array.volume_shape))
            volume = np.frombuffer(data, dtype, count, len(data) - count * dtype.itemsize)
            volume = volume.reshape(array.volume_shape)
            if array.dtype == bool:
                volume = volume != 0
            for _ in array.codec.encode(volume):
                pass


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
