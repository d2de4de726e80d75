"""Dose-volume histograms: what they cost at conversion and when asked, and whether they are right.

`conversion`: a full-size patient is converted in this process with and without the table `dvh`, by
turns; processor seconds, the median of the pairs' ratios, and what is spent in the histograms
themselves, which a busy machine disturbs less. `asked`: curves and metrics of that
patient from voxels, and from the table of 467 patients (its rows, repeated under other ids), in a
dataset just opened and again. `right`: every number of six small patients, base and extended,
against NumPy on the source files.

dicompyler-core is no peer here: it takes contours and doses from DICOM files, which LUND-PROBE does
not have, and divides voxels at contours, where we count voxels of masks.

    python -m benchmarks.dvh --work /tmp/lundprobe-bench
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import lundprobe_zarr as lp
from benchmarks.record import write_results
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import PatientSource, take_inventory
from lundprobe_zarr.conversion.tables import measure
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.tables import DVH, PATIENTS
from lundprobe_zarr.vocabulary.files import KNOWN_FILES
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

METRICS = ("D98%", "D2%", "D0.03cc", "V95%", "V38.43Gy[cc]", "mean", "min", "max", "HI", "CI[95%]")
SOURCES = ("clinical", "nnunet", "nnunet_fold", "observer")
TARGETS_OF_PLAN = ("CTVT_427", "PTVT_427")
#: Patients of the real dataset.
PATIENTS_OF_ALL = 467
_SOURCE_OF = {
    "clinical/mask": "clinical",
    "nnunet/mask": "nnunet",
    "nnunet/fold_mask": "nnunet_fold",
    "observers/mask": "observer",
}
Key = tuple[Any, ...]


def main() -> None:
    """Measure and write benchmarks/results/dvh.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    full = _phantom(options.work / "dvh-full", 1, 0, "full")
    six = _phantom(options.work / "dvh-six", 4, 2, "small")
    figures: dict[str, Any] = {"load_average_before": [round(n, 1) for n in os.getloadavg()]}
    figures["conversion"] = conversion(full, options.work / "dvh-converted", options.repeats)
    figures["asked"] = asked(options.work / "dvh-converted", options.repeats)
    figures["right"] = right(six, options.work / "dvh-six-converted")
    print(write_results("dvh", figures))
    print(json.dumps(figures, indent=2))


def _phantom(source: Path, patients: int, extended: int, size: Any) -> Path:
    if not source.exists():
        lp.write_phantom(source, patients=patients, extended=extended, size=size)
    return source


# What conversion costs


def conversion(source: Path, dataset: Path, repeats: int) -> dict[str, Any]:
    """Processor seconds of converting a patient with and without the table, by turns."""
    (patient,) = take_inventory(source).patients
    _converted(patient, dataset)  # imports and caches are nobody's cost
    pairs = []
    for turn in range(2 * repeats):
        with_first = turn % 2 == 0
        times = {}
        for with_table in (with_first, not with_first):
            with _table(with_table):
                times[with_table] = _converted(patient, dataset)
        pairs.append((times[True], times[False]))
    histograms = _of_histograms(patient, dataset)
    finalise(dataset)
    ratios = sorted(a / b for a, b in pairs)
    return {
        "processor_seconds_with": round(statistics.median(a for a, _ in pairs), 2),
        "processor_seconds_without": round(statistics.median(b for _, b in pairs), 2),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratios": [round(r, 3) for r in ratios],
        "processor_seconds_in_histograms": round(histograms, 3),
        "table_bytes_a_patient": sum(
            f.stat().st_size for f in (dataset / "metadata" / DVH.name).iterdir()
        ),
    }


def _of_histograms(patient: PatientSource, dataset: Path) -> float:
    """Processor seconds of a conversion that are spent on the histograms themselves."""
    kept, spent = measure.binned, [0.0]

    def timed(values: Any, voxel_cc: float) -> Any:
        started = time.thread_time()
        found = kept(values, voxel_cc)
        spent[0] += time.thread_time() - started
        return found

    measure.binned = timed
    try:
        _converted(patient, dataset)
    finally:
        measure.binned = kept
    return spent[0]


def _converted(patient: PatientSource, dataset: Path) -> float:
    started = time.process_time()
    result = convert_patient(patient, dataset, "standard")
    if result.error is not None:
        raise SystemExit(result.error)
    return time.process_time() - started


@contextmanager
def _table(wanted: bool) -> Iterator[None]:
    """Leave the histograms out of what is measured, unless wanted."""
    kept = measure.binned
    if not wanted:
        measure.binned = lambda values, voxel_cc: None
    try:
        yield
    finally:
        measure.binned = kept


# What asking costs


def asked(dataset: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of one patient's curves and metrics: wall, and of processor."""
    many = dataset.with_name("dvh-many")
    _repeated(dataset, many)
    figures: dict[str, Any] = {}
    for name, options in (
        ("curves_sct", {}),
        ("curves_mri", {"grid": "mri"}),
        ("metrics_sct", {"metrics": METRICS}),
    ):
        for method, place in (("voxels", dataset), ("table", many)):
            how: dict[str, Any] = {**options, "method": method}
            figures[f"{name}_from_{method}"] = {
                "just_opened": _timed(partial(_just_opened, place, how), repeats),
                "again": _timed(partial(lp.dvh, lp.open_cohort(place)[0], **how), repeats),
            }
    cohort = lp.open_cohort(many)
    figures["metrics_of_467_from_table"] = _timed(
        lambda: lp.dvh(cohort, metrics=METRICS, method="table"), repeats
    )
    figures["plan_check_of_467"] = _timed(lambda: lp.plan_check(cohort, "icru"), repeats)
    return figures


def _just_opened(place: Path, how: dict[str, Any]) -> object:
    return lp.dvh(lp.open_cohort(place)[0], **how)


def _timed(ask: Callable[[], object], repeats: int) -> dict[str, float]:
    ask()
    walls, processor = [], []
    for _ in range(repeats):
        wall, busy = time.perf_counter(), time.process_time()
        ask()
        walls.append(1000 * (time.perf_counter() - wall))
        processor.append(1000 * (time.process_time() - busy))
    return {
        "wall_ms": round(statistics.median(walls), 1),
        "processor_ms": round(statistics.median(processor), 1),
    }


def _repeated(dataset: Path, many: Path) -> None:
    """Write the tables of a dataset as if its patient were 467, without stores."""
    shutil.rmtree(many, ignore_errors=True)
    manifest = json.loads((dataset / "lundprobe.json").read_text())
    manifest |= {"table_sha256": {}, "cohort": None}
    manifest["patients"] = {"base": PATIENTS_OF_ALL, "extended": 0}
    manifest["tables"] = {n: manifest["tables"][n] for n in (PATIENTS.name, DVH.name)}
    for parts in manifest["tables"].values():
        for file in (f for files in parts.values() for f in files):
            table = pq.read_table(dataset / file)
            ids = [f"oldAcq_{n:016x}" for n in range(PATIENTS_OF_ALL)]
            copies = [
                table.set_column(0, table.schema.field(0), pa.array([i] * len(table), pa.string()))
                for i in ids
            ]
            (many / file).parent.mkdir(parents=True)
            pq.write_table(pa.concat_tables(copies), many / file, compression="zstd")
    add_checksum(manifest, manifest)
    (many / "lundprobe.json").write_text(json.dumps(manifest))


# Whether the numbers are right


def right(source: Path, dataset: Path) -> dict[str, Any]:
    """Largest differences from NumPy, by metric, over all segmentations of both grids."""
    for patient in take_inventory(source).patients:
        _converted(patient, dataset)
    finalise(dataset)
    cohort = lp.open_cohort(dataset)
    exact: dict[str, float] = dict.fromkeys(METRICS, 0.0)
    table: dict[str, float] = dict.fromkeys(METRICS, 0.0)
    compared = 0
    for grid in ("sct", "mri"):
        for key, expected in independent(source, grid).items():
            rows = _rows(cohort, grid)[key]
            compared += 1
            for differences, row in zip((exact, table), rows, strict=True):
                for metric in METRICS:
                    if metric == "HI" and key[2] not in TARGETS_OF_PLAN:
                        continue  # an index of targets: elsewhere D50% may be close to 0
                    off = abs(row[metric] - expected[metric])
                    differences[metric] = max(differences[metric], float(np.nan_to_num(off)))
    return {
        "patients": len(cohort),
        "segmentations": compared,
        "largest_difference_from_voxels": {m: float(f"{d:.2g}") for m, d in exact.items()},
        "largest_difference_from_table": {m: float(f"{d:.2g}") for m, d in table.items()},
    }


_KEPT: dict[tuple[str, str], dict[Key, tuple[dict[str, float], ...]]] = {}


def _rows(cohort: lp.Cohort, grid: Any) -> dict[Key, tuple[dict[str, float], ...]]:
    """Our numbers from voxels and from the table, by patient and segmentation."""
    place = (cohort.location.url, grid)
    if place not in _KEPT:
        sources = SOURCES if grid == "mri" else "clinical"
        frames = [
            lp.dvh(cohort, sources=sources, grid=grid, metrics=METRICS, method=method)
            for method in ("voxels", "table")
        ]
        _KEPT[place] = {
            key: tuple(f.iloc[n][list(METRICS)].to_dict() for f in frames)
            for n, key in enumerate(keys_of(frames[0]))
        }
    return _KEPT[place]


def keys_of(frame: pd.DataFrame) -> list[Key]:
    """Patient, source, structure, fold, step and observer of each row; None for none."""
    columns = ["patient_id", "source", "structure", "fold", "step", "observer"]
    rows = frame[columns].itertuples(index=False)
    return [tuple(None if pd.isna(v) else v for v in row) for row in rows]


def independent(source: Path, grid: str) -> dict[Key, dict[str, float]]:
    """The metrics of every segmentation on a grid, from the source's NIfTI files, by NumPy."""
    found = {}
    for home in source.glob("*Part/*Acq_*"):
        folder = "sCT" if grid == "sct" else "MR_StorT2"
        body, *_ = covered_doses(home, f"{folder}/mask_BODY.nii.gz")
        for file, record in KNOWN_FILES.items():
            kind = _SOURCE_OF.get(f"{record.group.partition('/')[2]}/{record.variable}")
            if kind and record.grid == grid and (home / file).exists():
                labels = (record.labels.get(n) for n in ("structure", "fold", "step", "observer"))
                values, voxels, voxel_cc = covered_doses(home, file)
                found[home.name, kind, *labels] = by_definition(values, voxel_cc, body) | {
                    "volume_cc": voxels * voxel_cc,
                    "covered_pct": 100 * len(values) / voxels,
                }
    return found


def covered_doses(home: Path, mask_file: str) -> tuple[np.ndarray, int, float]:
    """Doses of a mask's voxels between the planning grid's outermost centres; all voxels; cm³."""
    image = nib.load(home / mask_file)
    mask = np.asarray(image.dataobj) > 0
    folder = mask_file.partition("/")[0]
    dose = np.asarray(nib.load(home / folder / "dose_interpolated.nii.gz").dataobj)
    planned = nib.load(home / "sCT/dose_original.nii.gz")
    to_planned = np.linalg.inv(planned.affine) @ image.affine
    ijk = np.argwhere(mask)
    places = ijk @ to_planned[:3, :3].T + to_planned[:3, 3]
    inside = ((places > -1e-3) & (places < np.array(planned.shape) - 1 + 1e-3)).all(axis=1)
    voxel_cc = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    return dose[tuple(ijk[inside].T)].astype(np.float64), len(ijk), voxel_cc


def by_definition(values: np.ndarray, voxel_cc: float, body: np.ndarray) -> dict[str, float]:
    """The metrics of doses (n,), Gy, of a structure and of BODY, by their definitions."""
    falling = np.sort(values)[::-1]

    def d(share: float) -> float:
        return float(falling[math.ceil(share * len(falling) - 1e-9) - 1])

    needed = math.ceil(0.03 / voxel_cc - 1e-5)
    level = 0.95 * PRESCRIPTION_GY
    inside, isodose = np.sum(values >= level), np.sum(body >= level)
    return {
        "D98%": d(0.98),
        "D2%": d(0.02),
        "D0.03cc": float(falling[needed - 1]) if needed <= len(falling) else np.nan,
        "V95%": 100 * float(np.mean(values >= level)),
        "V38.43Gy[cc]": float(np.sum(values >= 38.43)) * voxel_cc,
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "HI": (d(0.02) - d(0.98)) / d(0.5),
        "CI[95%]": float(inside**2 / (len(values) * isodose)),
    }


if __name__ == "__main__":
    main()
