"""What `export-nnunet` of six full-size patients costs, against the floor of what it cannot avoid.

The floor decodes the same images and masks, each volume whole, and compresses the same bytes with
the same library at the same level, in the same number of threads, into files. It makes no label
map and syncs nothing. Both run by turns; wall and processor seconds, and the median of the pairs'
ratios. Kinds: T2w with five organs, T2w and sCT with five, and regions of all nine, which take a
look at all masks first.

    python -m benchmarks.nnunet --work /tmp/lundprobe-bench
    python -m benchmarks.nnunet --work /tmp/lundprobe-bench --memory

`--dataset FOLDER` takes a converted dataset of full-size patients instead of making one; if those
are fewer than six, they are exported several times, as datasets of nnU-Net with other ids.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import gzip_ng

import lundprobe_zarr as lp
from benchmarks.record import write_results
from lundprobe_zarr.exchange.nnunet import export_nnunet
from lundprobe_zarr.exchange.nnunet_settings import LEVEL
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import STRUCTURES

PATIENTS = 6
ORGANS = ("CTVT_427", "Rectum", "Bladder", "FemoralHead_L", "FemoralHead_R")
KINDS: dict[str, dict[str, Any]] = {
    "t2w": {"channels": ("T2w",), "labels": ORGANS, "workers": 2},
    "t2w_and_sct": {"channels": ("T2w", "sCT"), "labels": ORGANS, "workers": 2},
    "regions_of_nine": {
        "channels": ("T2w",), "labels": STRUCTURES, "workers": 2, "regions": True,
        "missing": "ignore",
    },
}  # fmt: skip


def main() -> None:
    """Measure and write benchmarks/results/nnunet.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="Measure memory in place of time.")
    parser.add_argument("--peak", type=int, metavar="WORKERS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work / "nnunet"
    work.mkdir(parents=True, exist_ok=True)
    dataset = options.dataset or converted(work)
    if options.peak is not None:
        print(peak(dataset, work, options.peak))
        return
    if options.memory:
        print(write_results("nnunet", memory(dataset, options.work), "_memory"))
        return
    figures: dict[str, Any] = {"level": LEVEL, "patients": PATIENTS}
    figures["load_average_before"] = [round(n, 1) for n in os.getloadavg()]
    warm = {"channels": ("T2w",), "labels": ORGANS, "workers": 1}
    export_nnunet(lp.open_cohort(dataset)[:1], work / "warm", 1, "Warm", **warm)  # imports
    for kind, how in KINDS.items():
        figures[kind] = measured(dataset, work, how, options.repeats)
        print(kind, json.dumps(figures[kind], indent=2))
    print(write_results("nnunet", figures))


def converted(work: Path) -> Path:
    """Six full-size patients, converted."""
    source, dataset = work / "source", work / "dataset"
    if not dataset.exists():
        lp.write_phantom(source, patients=PATIENTS, size="full")
        command = [sys.executable, "-m", "lundprobe_zarr", "convert", str(source), str(dataset)]
        subprocess.run(command, check=True)
    return dataset


def rounds(dataset: Path) -> list[lp.Cohort]:
    """Cohorts that together are six patients."""
    cohort = lp.open_cohort(dataset)
    return [cohort[: min(PATIENTS - n, len(cohort))] for n in range(0, PATIENTS, len(cohort))]


def measured(dataset: Path, work: Path, how: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds of export and floor, by turns, and their ratios."""
    cohorts = rounds(dataset)
    pairs = []
    for turn in range(repeats):
        found = {}
        for of in (ours, floor) if turn % 2 else (floor, ours):
            shutil.rmtree(work / "out", ignore_errors=True)
            os.sync()
            wall, processor = time.perf_counter(), time.process_time()
            of(cohorts, work / "out", how)
            found[of] = (time.perf_counter() - wall, time.process_time() - processor)
        pairs.append((found[ours], found[floor]))
    return {
        name: {
            "export_seconds": round(statistics.median(a[n] for a, _ in pairs), 2),
            "floor_seconds": round(statistics.median(b[n] for _, b in pairs), 2),
            "ratio_median": round(statistics.median(a[n] / b[n] for a, b in pairs), 3),
            "ratios": [round(a[n] / b[n], 3) for a, b in pairs],
        }
        for n, name in enumerate(("wall", "processor"))
    }


def ours(cohorts: list[lp.Cohort], out: Path, how: dict[str, Any]) -> None:
    """Export six patients."""
    written = 0
    for number, cohort in enumerate(cohorts, start=1):
        written += len(export_nnunet(cohort, out, number, "Bench", **how).notes)
    assert written == PATIENTS, written


def floor(cohorts: list[lp.Cohort], out: Path, how: dict[str, Any]) -> None:
    """Decode the images and masks of six patients; compress the images, and zeros for labels."""
    out.mkdir(parents=True)
    jobs = [(n, p) for n, cohort in enumerate(cohorts) for p in cohort]
    with ThreadPoolExecutor(how["workers"]) as pool:
        list(pool.map(lambda job: _floor_of(job[1], out / str(job[0]), how), jobs))


def _floor_of(patient: lp.Patient, out: Path, how: dict[str, Any]) -> None:
    out.mkdir(exist_ok=True)
    store = patient.dataset.store(patient.patient_id)
    reader = StoreReader(patient.location, store, decoders=1 if how["workers"] > 1 else 4)
    image, masks = (store.arrays[p] for p in ("mri/image", "mri/clinical/mask"))
    for record in image.sources:
        if record.labels["modality"] in how["channels"]:
            kind = np.int16 if record.labels["modality"] == "T2w" else image.dtype
            values = reader.volume(image, record).astype(kind, copy=False)
            _compress(values, out / f"{patient.patient_id}_{record.labels['modality']}")
    labels = np.zeros(masks.volume_shape, np.uint8)
    for record in masks.sources:
        if record.labels["structure"] in how["labels"]:
            mask = reader.volume(masks, record)
            if not how.get("regions") and record.labels["structure"] == how["labels"][0]:
                labels = mask.view(np.uint8)  # something like a label map, for gzip
    _compress(labels, out / patient.patient_id)


def _compress(values: np.ndarray, path: Path) -> None:
    with gzip_ng.GzipNGFile(str(path), "wb", LEVEL) as file:
        for plane in values:
            file.write(plane.data)


def memory(dataset: Path, work: Path) -> dict[str, Any]:
    """Most memory (MB) of a process that opens a cohort, and that exports with 1 and 2 workers."""
    found = {}
    for workers in (0, 1, 2):
        command = [sys.executable, "-m", "benchmarks.nnunet", "--peak", str(workers)]
        command += ["--dataset", str(dataset), "--work", str(work)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(workers)] = int(ran.stdout)
    return {"peak_memory_mb_by_workers": found}


def peak(dataset: Path, work: Path, workers: int) -> int:
    """Export with so many workers in this process, or only open; return its peak memory, MB."""
    shutil.rmtree(work / "out", ignore_errors=True)
    cohort = lp.open_cohort(dataset)
    if workers:
        how = KINDS["t2w_and_sct"] | {"workers": workers}
        export_nnunet(cohort, work / "out", 1, "Bench", **how)
    # Not of getrusage, which counts what the parent had when it started this process.
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6)


if __name__ == "__main__":
    main()
