"""Comparing segmentations: its cost at full size, and every number against other computations.

`cost`: `lundprobe-zarr measure` of a full-size extended phantom patient: processor seconds of the
command with its worker, largest memory of a worker, and the same for 35 patients. A pair by SciPy's
distance transform on the whole volume and on its box are beside it, in the same run.
`numbers`: every row of `agreement` and `uncertainty` of some small patients, computed from the
exported NIfTI files with nibabel, NumPy, SimpleITK and `surface-distance`; the largest differences.

    python -m benchmarks.agreement --work /tmp/lundprobe-bench
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813 - as everybody does
from scipy.ndimage import binary_erosion, distance_transform_edt

import lundprobe_zarr as lp
from benchmarks.conversion import watch_memory
from benchmarks.record import write_results
from lundprobe_zarr.measures.agreement import agreement
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.phantom import write_phantom

Mask = np.ndarray
PARTS = ("cost", "numbers")
#: Patients of the extended part.
_EXTENDED = 35


def main() -> None:
    """Measure; write results/agreement.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--patients", type=int, default=6, help="whose numbers are compared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if "cost" in options.only:
        figures["cost"] = cost(options.work, options.repeats)
    if "numbers" in options.only:
        figures["numbers"] = numbers(options.work, options.patients)
    print(write_results("agreement", figures))
    print(figures)


def converted(work: Path, name: str, patients: int, size: str) -> tuple[Path, Path]:
    """Source and dataset of extended phantom patients, made if they are not there."""
    source, dataset = work / f"agreement-{name}-source", work / f"agreement-{name}"
    if not source.exists():
        write_phantom(source, patients=0, extended=patients, size=size, workers=2)
    if not (dataset / "lundprobe.json").exists():
        command("convert", source, dataset, "--workers", 2)
    return source, dataset


def command(*arguments: object) -> dict[str, float]:
    """Run one of ours; seconds of wall and processor, its workers' too, and a worker's memory."""
    words = [sys.executable, "-m", "lundprobe_zarr", *map(str, arguments)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        peak = watch_memory(process)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "wall_s": round(time.perf_counter() - started, 2),
        "cpu_s": round(seconds, 2),
        "peak_worker_mib": round(peak / 2**20),
    }


def cost(work: Path, repeats: int) -> dict[str, Any]:
    """Cost of `measure` at full size, and of a pair by SciPy with and without a box."""
    _, dataset = converted(work, "full", 1, "full")
    runs = [command("measure", dataset, "--workers", 1, "--overwrite") for _ in range(repeats)]
    nothing = [command("measure", dataset, "--workers", 1) for _ in range(repeats)]
    patient = lp.open_cohort(dataset)[0]
    masks = [
        patient.observers.mask.sel(structure="CTVT_427", step=1, observer=o).values
        for o in ("obsB", "obsC")
    ]
    spacing = tuple(patient.mri.lp.spacing_mm.tolist())
    worst = max(run["cpu_s"] for run in runs)
    return {
        "matrix_zyx": list(masks[0].shape),
        "rows": {n: len(patient.dataset.patient_rows(n, patient.patient_id)) for n in
                 ("agreement", "uncertainty")},
        "measure": runs,
        "command_with_nothing_to_do": nothing,
        "cpu_minutes_of_35_patients": round(_EXTENDED * worst / 60, 1),
        "pair_cpu_s": {
            "ours": timed(lambda: agreement(*masks, spacing)),
            "scipy_on_the_whole_volume": timed(lambda: by_scipy(masks, spacing)),
            "scipy_on_the_box": timed(lambda: by_scipy(cropped(masks), spacing)),
        },
    }  # fmt: skip


def timed(function: Any) -> float:
    """Processor seconds of a call."""
    started = time.process_time()
    function()
    return round(time.process_time() - started, 3)


def cropped(masks: list[Mask]) -> list[Mask]:
    """Masks in their joint box."""
    box = bounding_box(np.logical_or(*masks))
    return [m[box] for m in masks]


def by_scipy(masks: list[Mask], spacing: tuple[float, ...]) -> float:
    """The Hausdorff distance of border voxels, as scripts have it: a distance map a mask."""
    borders = [m & ~binary_erosion(m) for m in masks]
    maps = [distance_transform_edt(~b, sampling=spacing) for b in borders]
    return float(max(maps[1][borders[0]].max(), maps[0][borders[1]].max()))


def numbers(work: Path, patients: int) -> dict[str, Any]:
    """Compare every number of both tables with others' on the exported files."""
    warnings.simplefilter("ignore")  # surface-distance calls SciPy by an old name
    _, dataset = converted(work, "small", patients, "small")
    command("measure", dataset, "--workers", 2)
    largest: dict[str, float] = {}
    counted = {"agreement": 0, "uncertainty": 0, "values": 0}
    for patient in lp.open_cohort(dataset):
        out = work / "agreement-export"
        shutil.rmtree(out, ignore_errors=True)
        command("export", dataset, patient.patient_id, out)
        files = Exported(next(out.rglob("MR_StorT2")))
        for table, rows in (("agreement", agreed(files)), ("uncertainty", uncertain(files))):
            ours = patient.dataset.patient_rows(table, patient.patient_id).to_pylist()
            theirs = dict(rows)
            counted[table] += len(ours)
            if len(theirs) != len(ours):
                raise SystemExit(f"{patient}: {len(ours)} rows of {table}, {len(theirs)} expected")
            for row in ours:
                for name, expected in theirs[key_of(table, row)].items():
                    counted["values"] += 1
                    difference = differs(row[name], expected)
                    largest[f"{table}.{name}"] = max(
                        largest.get(f"{table}.{name}", 0.0), difference
                    )
    return {
        "patients": patients,
        "rows": counted,
        "largest_relative_difference": {k: float(f"{v:.1e}") for k, v in largest.items()},
        "peers": {p: version(p) for p in ("surface-distance", "SimpleITK", "numpy", "nibabel")},
    }


def differs(found: float | None, expected: float | None) -> float:
    """Relative difference; infinite where only one is null."""
    if found is None or expected is None:
        return 0.0 if found is expected else np.inf
    return abs(found - expected) / max(abs(expected), 1e-9) if found != expected else 0.0


def key_of(table: str, row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row."""
    if table == "agreement":
        return row["structure"], *(
            (row[f"{s}_source"], row[f"{s}_observer"], row[f"{s}_step"], row[f"{s}_fold"])
            for s in "ab"
        )
    low = round(row["bin_low"], 6)
    return row["structure"], row["step"], row["observer"], row["estimate"], low


class Exported:
    """The NIfTI files of a patient, read with nibabel as (x, y, z) and turned to (z, y, x)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sizes = nibabel.load(folder / "image.nii.gz").header.get_zooms()
        self.spacing = tuple(float(s) for s in sizes[:3][::-1])

    def read(self, path: str) -> np.ndarray:
        """Voxels of a file."""
        return np.asanyarray(nibabel.load(self.folder / path).dataobj).T

    def masks(self, structure: str) -> dict[tuple[Any, ...], Mask]:
        """All masks of a structure, the consensus by SimpleITK with them."""
        stem = f"nnUNetOutput/mask_{structure}_nnUNet"
        found = {("nnunet", None, None, None): self.read(f"{stem}.nii.gz") > 0}
        for n in range(10):
            path = f"nnUNetOutput/folds/mask_{structure}_nnUNet_fold_{n}.nii.gz"
            found["nnunet_fold", None, None, n] = self.read(path) > 0
        for step in (1, 2):
            drawn = {}
            for o in ("obsB", "obsC", "obsD", "obsE"):
                path = f"observerData/mask_{structure}_step{step}_{o}.nii.gz"
                drawn["observer", o, step, None] = self.read(path) > 0
            images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in drawn.values()]
            votes = sitk.GetArrayFromImage(sitk.LabelVoting(images, 0)) > 0  # ties are 0
            likely = sitk.GetArrayFromImage(sitk.STAPLE(images)) >= 0.5
            found |= drawn
            found["consensus_majority", None, step, None] = votes
            found["consensus_staple", None, step, None] = likely
        return found


def agreed(files: Exported) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Rows of `agreement` by other means."""
    for structure in ("CTVT_427", "Rectum"):
        masks = files.masks(structure)
        for a, b in wanted_pairs(list(masks)):
            yield (structure, a, b), compared(masks[a], masks[b], files.spacing)


def wanted_pairs(keys: list[tuple[Any, ...]]) -> Iterator[tuple[Any, Any]]:
    """Pairs as docs/agreement.md lists them, written down anew."""
    observers = [k for k in keys if k[0] == "observer"]
    for a in keys:
        for b in keys:
            kinds, same_step = (a[0], b[0]), a[2] == b[2]
            is_agreed = a[0].startswith("consensus")
            if (
                (kinds == ("observer", "observer") and same_step and a[1] < b[1])
                or kinds == ("nnunet", "observer")
                or (a in observers and b in observers and a[1] == b[1] and (a[2], b[2]) == (1, 2))
                or kinds == ("nnunet_fold", "nnunet")
                or (is_agreed and b[0] == "observer" and same_step)
                or (is_agreed and b[0] in ("nnunet", "nnunet_fold"))
                or (is_agreed and a[0] == b[0] and (a[2], b[2]) == (1, 2))
            ):
                yield a, b


def compared(a: Mask, b: Mask, spacing: tuple[float, ...]) -> dict[str, Any]:
    """The measures of a pair, by surface-distance, SimpleITK and NumPy."""
    import surface_distance as peer

    theirs = peer.compute_surface_distances(a, b, spacing)
    means = peer.compute_average_surface_distance(theirs)
    areas = [theirs[f"surfel_areas_{n}"].sum() for n in ("gt", "pred")]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)))
    voxel_cc = np.prod(spacing) / 1000
    outlines = [outline(m) for m in (a, b)]
    width = np.sqrt(spacing[1] * spacing[2])
    return {
        "dice": overlap.GetDiceCoefficient(),
        "surface_dice_1mm": peer.compute_surface_dice_at_tolerance(theirs, 1 + 1e-6),
        "surface_dice_2mm": peer.compute_surface_dice_at_tolerance(theirs, 2 + 1e-6),
        "hd95_mm": peer.compute_robust_hausdorff(theirs, 95),
        "hd_mm": peer.compute_robust_hausdorff(theirs, 100),
        "assd_mm": float(np.average(means, weights=areas)),
        "added_path_mm": np.count_nonzero(outlines[1] & ~outlines[0]) * width,
        "a_cc": a.sum() * voxel_cc,
        "b_cc": b.sum() * voxel_cc,
        "difference_cc": (int(b.sum()) - int(a.sum())) * voxel_cc,
        "added_voxels": int((b & ~a).sum()),
        "removed_voxels": int((a & ~b).sum()),
    }


def outline(mask: Mask) -> Mask:
    """Voxels of each slice with a side in common with one outside, by SciPy."""
    cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)
    return mask & ~binary_erosion(mask, cross)


def uncertain(files: Exported) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Rows of `uncertainty` by NumPy's histograms over the whole volume."""
    for structure in ("CTVT_427", "Rectum"):
        masks = files.masks(structure)
        start = masks["nnunet", None, None, None]
        folds = np.stack([masks["nnunet_fold", None, None, n] for n in range(10)])
        values = files.read(f"nnUNetOutput/mask_{structure}_nnUNet_uncertaintyMap.nii.gz")
        edges = [0, *(np.float32(e) for e in (0.1, 0.2, 0.3, 0.4)), np.inf]
        bins = {"map": np.digitize(values, edges) - 1, "fold_mean": folds.sum(0)}
        for (source, observer, step, _), drawn in masks.items():
            if source != "observer":
                continue
            for estimate, of in bins.items():
                for n in range(5 if estimate == "map" else 11):
                    key = structure, step, observer, estimate, round(n / 10, 6)
                    yield key, edited(of == n, start, drawn, values)


def edited(here: Mask, start: Mask, drawn: Mask, values: np.ndarray) -> dict[str, Any]:
    """What an observer made of the voxels of a bin."""
    voxels, change = int(here.sum()), int((here & (start != drawn)).sum())
    return {
        "voxels": voxels,
        "inside_voxels": int((here & drawn).sum()),
        "edited_voxels": change,
        "added_voxels": int((here & drawn & ~start).sum()),
        "removed_voxels": int((here & start & ~drawn).sum()),
        "edit_rate": change / voxels if voxels else None,
        "map_mean": float(values[here].mean(dtype=np.float64)) if voxels else None,
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
