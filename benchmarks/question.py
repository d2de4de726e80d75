"""One question of full-size patients, asked of a converted dataset and of the `.nii.gz` files.

"What is the median T2w value inside the CTV, for newAcq patients with a penile bulb?", a number
for each: with this package, with nibabel and with SimpleITK, each as a good user would write it.
Every run is a process of its own that asks twice. `process` is what a user waits for, interpreter
and imports included; `first` is the asking alone, with what it has to import; `again` is the second
time, everything imported. Bytes are counted by the kernel while asking again, from a dataset
opened anew. `cold`: the files were dropped from the page cache before; `warm`: they were just read.
The answers have to be the same. Needs what `python -m benchmarks.conversion` leaves in its folder.

    python -m benchmarks.question --work /tmp/lundprobe-bench
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import write_results

Answer = dict[str, float]


def with_lundprobe_zarr(place: Path) -> Answer:
    """Of the converted dataset at `place`."""
    import numpy as np

    import lundprobe_zarr as lp

    medians = {}
    cohort = lp.open_cohort(place).where("protocol = 'newAcq' AND NOT missing_PenileBulb")
    for patient in cohort:
        t2w = patient.mri.lp.crop("CTVT_427", patient).image.sel(modality="T2w").values
        ctv = patient.clinical.lp.crop("CTVT_427", patient).mask.sel(structure="CTVT_427").values
        medians[patient.patient_id] = float(np.median(t2w[ctv]))
    return medians


def with_nibabel(place: Path) -> Answer:
    """Of the source tree at `place`."""
    import nibabel
    import numpy as np

    medians = {}
    for folder in place.glob("*Part/newAcq_*/MR_StorT2"):
        if (folder / "mask_PenileBulb.nii.gz").exists():
            t2w = np.asanyarray(nibabel.load(folder / "image.nii.gz").dataobj)
            ctv = np.asanyarray(nibabel.load(folder / "mask_CTVT_427.nii.gz").dataobj) > 0
            medians[folder.parent.name] = float(np.median(t2w[ctv]))
    return medians


def with_simpleitk(place: Path) -> Answer:
    """Of the source tree at `place`."""
    import numpy as np
    import SimpleITK as sitk  # noqa: N813 - as everybody does

    medians = {}
    for folder in place.glob("*Part/newAcq_*/MR_StorT2"):
        if (folder / "mask_PenileBulb.nii.gz").exists():
            t2w = sitk.GetArrayFromImage(sitk.ReadImage(folder / "image.nii.gz"))
            ctv = sitk.GetArrayFromImage(sitk.ReadImage(folder / "mask_CTVT_427.nii.gz")) > 0
            medians[folder.parent.name] = float(np.median(t2w[ctv]))
    return medians


WAYS: dict[str, Callable[[Path], Answer]] = {
    "lundprobe_zarr": with_lundprobe_zarr,
    "nibabel": with_nibabel,
    "SimpleITK": with_simpleitk,
}
_OURS = "lundprobe_zarr"


def main() -> None:
    """Measure and write benchmarks/results/question.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--source", default="source-2-1", help="source tree in the work folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ask", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    places = dict.fromkeys(WAYS, options.work / options.source)
    places[_OURS] = options.work / "standard"
    if options.ask:
        print(json.dumps(ask(WAYS[options.ask], places[options.ask])))
        return
    figures = measure(places, options)
    print(write_results("question", figures))
    print(json.dumps(figures, indent=2))


def ask(way: Callable[[Path], Answer], place: Path) -> dict[str, Any]:
    """Seconds of asking twice, peak memory and bytes read, and the answer."""
    started = time.perf_counter()
    answer = way(place)
    first = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, started = bytes_read(), time.perf_counter()
    if way(place) != answer:
        raise SystemExit(f"{way.__name__}: another answer the second time; expected the same")
    return {
        "first": first,
        "again": time.perf_counter() - started,
        "bytes": bytes_read() - read,
        "peak_mib": peak / 1024,
        "answer": answer,
    }


def bytes_read() -> int:
    """Bytes this process has read so far, from the page cache or not, as the kernel counts."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


def measure(places: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turn, cold and warm, as often as asked for."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for name, place in places.items():
            drop_from_cache(place)
            for cache in ("cold", "warm"):
                runs.setdefault(f"{name} {cache}", []).append(run(name, options))
    answers = [found["answer"] for several in runs.values() for found in several]
    if any(answer != answers[0] for answer in answers):
        raise SystemExit(f"different answers: {answers}; expected one")
    ways = {name: summary(name, runs) for name in places}
    return {
        "patients_in_the_dataset": len(list((places[_OURS] / "patients").glob("*.zarr"))),
        "answer": answers[0],
        "SimpleITK": version("SimpleITK"),
        "repeats": options.repeats,
        "ways": ways,
        "ratio_to_lundprobe_zarr": {n: ratios(ways[n], ways[_OURS]) for n in ways if n != _OURS},
    }


def drop_from_cache(folder: Path) -> None:
    """Have the kernel forget the contents of all files below a folder; needs no privilege."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own found, and how long the whole of it took to its first answer."""
    command = [sys.executable, "-m", "benchmarks.question", "--ask", name]
    command += ["--work", str(options.work), "--source", options.source]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=True)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"process": seconds - found["again"]}


def summary(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One way's figures: medians over the repeats."""
    figures: dict[str, Any] = {"lines_of_code": lines_of_code(WAYS[name])}
    for cache in ("cold", "warm"):
        found = runs[f"{name} {cache}"]
        for key in ("process", "first"):
            figures[f"{cache}_{key}_seconds"] = median(found, key, 2)
    figures["again_seconds"] = median(runs[f"{name} warm"], "again", 3)
    figures["megabytes_read"] = round(median(runs[f"{name} warm"], "bytes", 0) / 1e6, 2)
    figures["peak_mib"] = median(runs[f"{name} warm"], "peak_mib", 0)
    return figures


def median(found: list[dict[str, Any]], key: str, digits: int) -> float:
    """Median of one figure."""
    return float(round(statistics.median(one[key] for one in found), digits))


def lines_of_code(way: Callable[[Path], Answer]) -> int:
    """Lines that a user writes: the body without docstring, blank lines and `return`."""
    _, _, *body = inspect.getsource(way).splitlines()
    return len([line for line in body if line.strip()]) - 1


def ratios(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Their figures in multiples of ours."""
    return {key: round(theirs[key] / ours[key], 1) for key in ours}


if __name__ == "__main__":
    main()
