"""What OME-Zarr costs: time to open a patient, size and conversion time of coarser levels.

Full-size phantom patients, one base and one extended. Opening is measured on the extended one,
whose metadata are longest, with what the root says for `ome` and without it: `open_tree`, in
rounds that alternate, processor time, medians and the median of the paired ratios. Conversion runs
in this process, with and without two levels, processor time.

    python -m benchmarks.ome --work /tmp/lundprobe-ome
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.record import write_results
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory, with_coarser_levels
from lundprobe_zarr.dataset.objects import ROOT
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.levels import level_nodes
from lundprobe_zarr.schema.ome import OME_MARK
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.tree import open_tree


def main() -> None:
    """Measure and write results/ome.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--rounds", type=int, default=301)
    options = parser.parse_args()
    source = options.work / "source"
    if not source.exists():
        write_phantom(source, patients=1, extended=1, size="full")
    converted = {
        levels: convert(source, options.work / f"levels-{levels}", levels) for levels in (0, 2)
    }
    figures: dict[str, Any] = {"patients": {}}
    for patient_id, plain in converted[0].items():
        levelled = converted[2][patient_id]
        figures["patients"][patient_id.partition("_")[0] + "_" + plain["part"]] = {
            "store_mb": plain["mb"],
            "store_with_2_levels_mb": levelled["mb"],
            "added_size_pct": round(100 * (levelled["bytes"] / plain["bytes"] - 1), 1),
            "conversion_s_cpu": plain["cpu"],
            "conversion_with_2_levels_s_cpu": levelled["cpu"],
            "added_conversion_pct": round(100 * (levelled["cpu"] / plain["cpu"] - 1), 1),
            "added_files": levelled["files"] - plain["files"],
        }
    figures["peak_mib_of_both_conversions"] = {k: v["peak"] for k, v in converted[2].items()}
    extended = next(i for i, p in converted[0].items() if p["part"] == "extended")
    for levels in (0, 2):
        dataset = options.work / f"levels-{levels}"
        figures[f"opening_with_{levels}_levels"] = opening(dataset, extended, options.rounds)
    print(write_results("ome", figures))
    print(json.dumps(figures, indent=2))


def convert(source: Path, destination: Path, levels: int) -> dict[str, Any]:
    """Convert each patient in this process; size and processor time."""
    shutil.rmtree(destination, ignore_errors=True)
    found = {}
    for patient in with_coarser_levels(take_inventory(source), levels).patients:
        started = time.process_time()
        result = convert_patient(patient, destination, "standard")
        if result.error is not None:
            raise SystemExit(result.error)
        seconds = time.process_time() - started
        files = [
            f
            for f in (destination / f"patients/{patient.patient_id}.zarr").rglob("*")
            if f.is_file()
        ]
        size = sum(f.stat().st_size for f in files)
        found[patient.patient_id] = {
            "part": patient.part,
            "cpu": round(seconds, 2),
            "bytes": size,
            "mb": round(size / 1e6, 1),
            "files": len(files),
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    return found


def opening(dataset: Path, patient_id: str, rounds: int) -> dict[str, Any]:
    """Processor time of opening a patient with `ome` and without, in alternating rounds."""
    bare = dataset.with_name(f"{dataset.name}-bare")
    shutil.rmtree(bare, ignore_errors=True)
    place = f"patients/{patient_id}.zarr/{ROOT}"
    root = json.loads((dataset / place).read_text())
    for name in (OME_MARK, "t2w_window"):
        root["attributes"].pop(name, None)
    add_checksum(root, root["attributes"])
    (bare / place).parent.mkdir(parents=True)
    (bare / place).write_text(json.dumps(root, indent=2))
    for folder in (dataset, bare):
        opened(folder, patient_id)
    pairs = []
    for number in range(rounds):
        order = (dataset, bare) if number % 2 else (bare, dataset)
        took = {folder: opened(folder, patient_id) for folder in order}
        pairs.append((took[dataset], took[bare]))
    with_ome, without = (statistics.median(p[n] for p in pairs) for n in (0, 1))
    return {
        "ms_cpu": round(1e3 * with_ome, 3),
        "ms_cpu_without_ome": round(1e3 * without, 3),
        "added_pct": round(100 * (with_ome / without - 1), 2),
        "added_pct_median_of_pairs": round(
            100 * (statistics.median(a / b for a, b in pairs) - 1), 2
        ),
        "root_bytes": (dataset / place).stat().st_size,
        "root_bytes_without_ome": (bare / place).stat().st_size,
        "nodes_of_levels": len(level_nodes(root)),
    }


def opened(dataset: Path, patient_id: str) -> float:
    """Processor seconds of opening a patient once."""
    started = time.process_time()
    open_tree(Location(dataset), patient_id)
    return time.process_time() - started


if __name__ == "__main__":
    main()
