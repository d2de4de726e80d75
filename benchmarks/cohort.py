"""Choosing patients with SQL: seconds on 467 patients and on 100,000, and what importing costs.

The patients are simulated, tables only: `patients` and `structures` as LUND-PROBE's would be, 18
clinical masks a patient, 38 further ones for every thirteenth, a few lacking. Each figure is the
median of the repeats with the smallest and the largest; `first` is the one call in a fresh process
that also reads the tables it needs from a local disk.

    python -m benchmarks.cohort
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import write_results
from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.manifest import ACCESS_SYNTHETIC, Manifest
from lundprobe_zarr.schema.tables import PATIENTS, STRUCTURES_TABLE, Table, table_file
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STEPS, STRUCTURES, TARGETS

PREDICATES = {
    "patients": "protocol = 'newAcq' AND NOT missing_PenileBulb AND dose_max_gy > 44",
    "structures": "Rectum.volume_cc > 60 AND CTVT_427.d95_gy >= 0.95 * 42.7",
    "both_grids": "abs(Rectum.volume_cc - sct.Rectum.volume_cc) < 5 AND PenileBulb IS NOT NULL",
}
QUERY = (
    "SELECT protocol, structure, avg(volume_cc) FROM structures "
    "JOIN patients USING (patient_id, protocol) WHERE grid = 'mri' GROUP BY ALL"
)
#: Patients of the real dataset, and the most we promise to serve.
SIZES = (467, 100_000)


def main() -> None:
    """Measure and write benchmarks/results/cohort.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    figures: dict[str, Any] = {"duckdb": version("duckdb"), "pyarrow": version("pyarrow")}
    figures["load_average_before"] = [round(load, 1) for load in os.getloadavg()]
    for patients in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            simulate(Path(folder), patients)
            figures[f"{patients}_patients"] = measure(folder, options.repeats)
    figures["import"] = imports(options.repeats)
    print(write_results("cohort", figures))
    print(json.dumps(figures, indent=2))


def measure(folder: str, repeats: int) -> dict[str, Any]:
    """Milliseconds of opening, choosing and asking, of one simulated dataset."""
    cohort = open_cohort(folder)
    figures: dict[str, Any] = {"open": timed(lambda: open_cohort(folder), repeats)}
    for name, predicate in PREDICATES.items():
        figures[f"where_{name}"] = timed(lambda p=predicate: len(cohort.where(p)), repeats) | {
            "predicate": predicate,
            "chosen": len(cohort.where(predicate)),
            "first": first(folder, predicate, repeats),
        }
    figures["where_another_structure"] = another_structure(cohort)
    figures["sql"] = timed(lambda: cohort.sql(QUERY), repeats) | {"query": QUERY}
    figures["sql_of_a_third"] = timed(lambda: third(cohort).sql(QUERY), repeats)
    figures["split"] = timed(cohort.split, repeats)
    return figures


def another_structure(cohort: Cohort) -> dict[str, float]:
    """Milliseconds of asking for the first time of one structure after another, the table read."""
    seconds = []
    for structure in (s for s in STRUCTURES if s not in " ".join(PREDICATES.values())):
        started = time.perf_counter()
        len(cohort.where(f"{structure}.volume_cc > 60"))
        seconds.append(time.perf_counter() - started)
    return spread(seconds)


def third(cohort: Cohort) -> Cohort:
    """Every third patient, so that tables have to be restricted."""
    return cohort[::3]


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of a call after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return spread(seconds)


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest, in milliseconds."""
    found = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {f"{name}_ms": round(1000 * value, 1) for name, value in found.items()}


def first(folder: str, predicate: str, repeats: int) -> dict[str, float]:
    """The first choice of a process, the cohort open: starts DuckDB and reads tables."""
    program = (
        "import sys, time; from lundprobe_zarr import open_cohort\n"
        "cohort = open_cohort(sys.argv[1]); started = time.perf_counter()\n"
        "len(cohort.where(sys.argv[2])); print(time.perf_counter() - started)"
    )
    command = [sys.executable, "-c", program, folder, predicate]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(repeats)]
    return spread([float(run.stdout) for run in runs])


def imports(repeats: int) -> dict[str, Any]:
    """Imports and `--help` as whole processes, turn and turn about, less an empty one's time."""
    commands = {
        "empty": ["-c", "pass"],
        "numpy": ["-c", "import numpy"],
        "lundprobe_zarr": ["-c", "import lundprobe_zarr"],
        "cohort": ["-c", "from lundprobe_zarr import open_cohort"],
        "help": ["-m", "lundprobe_zarr", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, arguments in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - started)
    empty = statistics.median(seconds["empty"])
    numpy_cost = statistics.median(seconds["numpy"]) - empty
    ratios = {
        name: round((statistics.median(seconds[name]) - empty) / numpy_cost, 2)
        for name in ("lundprobe_zarr", "cohort", "help")
    }
    return {n: spread(s) for n, s in seconds.items()} | {"ratio_to_importing_numpy": ratios}


def simulate(folder: Path, patients: int, seed: int = 0) -> None:
    """Write the manifest and the tables `patients` and `structures` of a dataset without stores."""
    rng = np.random.default_rng(seed)
    number = np.arange(patients)
    extended = number % 13 == 12
    protocol = np.where(extended | (number % 9 < 2), "newAcq", "oldAcq")
    lacking = {s: np.zeros(patients, bool) for s in STRUCTURES}
    lacking |= {"PenileBulb": number % 17 == 3, "Genitalia": number % 20 == 7}
    part = np.where(extended, "extended", "base")
    who = {"patient_id": _ids(protocol), "part": part, "protocol": protocol}
    manifest: dict[str, dict[str, list[str]]] = {"patients": {}, "structures": {}}
    tables = {
        "patients": (PATIENTS, _patients(who, lacking)),
        "structures": (STRUCTURES_TABLE, _segmentations(who, lacking)),
    }
    for name, (table, given) in tables.items():
        for one in ("base", "extended"):
            rows = {column: values[given["part"] == one] for column, values in given.items()}
            path = folder / table_file(name, one)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(_filled(table, rows, rng), path, compression="zstd")
            manifest[name][one] = [table_file(name, one)]
    (folder / "lundprobe.json").write_text(_manifest(part, manifest).dump())


def _manifest(part: Any, tables: dict[str, dict[str, list[str]]]) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="LUND-PROBE simulated tables (synthetic)",
        precision="standard",
        synthetic=True,
        access=ACCESS_SYNTHETIC,
        converter="benchmarks.cohort",
        created="2025-01-01T00:00:00+00:00",
        patients={p: int((part == p).sum()) for p in ("base", "extended")},
        tables=tables,
    )


def _ids(protocol: Any) -> Any:
    digests = (hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(len(protocol)))
    return np.array([f"{p}_{d}" for p, d in zip(protocol, digests, strict=True)])


def _patients(who: dict[str, Any], lacking: dict[str, Any]) -> dict[str, Any]:
    stores = np.array([f"patients/{i}.zarr" for i in who["patient_id"]])
    return who | {"store": stores} | {f"missing_{s}": flags for s, flags in lacking.items()}


def _segmentations(who: dict[str, Any], lacking: dict[str, Any]) -> dict[str, Any]:
    """Rows of the structures table: for each patient the segmentations that are there."""
    kinds: list[tuple[Any, ...]] = [
        (grid, "clinical", s, None, None, None) for grid in ("mri", "sct") for s in STRUCTURES
    ]
    kinds += [("mri", "nnunet", s, None, None, None) for s in TARGETS]
    kinds += [("mri", "nnunet_fold", s, f, None, None) for s in TARGETS for f in FOLDS]
    kinds += [
        ("mri", "observer", s, None, step, o) for s in TARGETS for step in STEPS for o in OBSERVERS
    ]
    there = np.stack(
        [~lacking[k[2]] & ((k[1] == "clinical") | (who["part"] == "extended")) for k in kinds], 1
    )
    patient, kind = np.nonzero(there)
    named = zip(("grid", "source", "structure", "fold", "step", "observer"), range(6), strict=True)
    labels = {name: np.array([k[i] for k in kinds], object)[kind] for name, i in named}
    return {name: values[patient] for name, values in who.items()} | labels


def _filled(table: Table, given: dict[str, Any], rng: np.random.Generator) -> pa.Table:
    """An Arrow table of the given columns, all others filled with numbers of no meaning."""
    rows = len(given["patient_id"])
    columns = [
        pa.array(given[c.name], c.type) if c.name in given else _filler(c.name, c.type, rows, rng)
        for c in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _filler(name: str, kind: pa.DataType, rows: int, rng: np.random.Generator) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        values = _filler(name, kind.value_type, rows * kind.list_size, rng)
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    if pa.types.is_list(kind) and not pa.types.is_string(kind.value_type):  # z, y, x
        ends = np.arange(0, 3 * rows + 1, 3, dtype=np.int32)
        return pa.ListArray.from_arrays(ends, _filler(name, kind.value_type, rows * 3, rng))
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(np.zeros(rows + 1, np.int32), pa.array([], kind.value_type))
    if pa.types.is_boolean(kind):
        return pa.array(rng.random(rows) < 0.5)
    if pa.types.is_integer(kind):
        return pa.array(rng.integers(1, 400, rows), kind)
    if pa.types.is_string(kind):
        return pa.array([""] * rows, kind)
    return pa.array(rng.normal(42.5 if name.endswith("_gy") else 70, 1.5, rows), kind)


if __name__ == "__main__":
    main()
