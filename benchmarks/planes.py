"""Planes, contours and values at full size: bytes, processor time cold and warm, memory.

The server is a process of its own, whose processor time is that of all its threads. Cold: the
chunks are not decoded yet, the files are in the page cache. Warm: a neighbouring plane was shown.

    python -m benchmarks.planes --dataset /tmp/bench/full
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import lundprobe_zarr as lp
from benchmarks.record import write_results
from benchmarks.service import NAME, Running, service

T2W = {"array": "mri/image", "modality": "T2w"}
SCT = {"array": "mri/image", "modality": "sCT"}
DOSE = {"array": "mri/dose"}
#: Each kind of answer: path, parameters, and the axis that is scrolled along.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "T2w axial": ("/plane", T2W, "z"),
    "T2w axial, half": ("/plane", T2W | {"stride": 2}, "z"),
    "T2w axial, quarter": ("/plane", T2W | {"stride": 4}, "z"),
    "T2w coronal": ("/plane", T2W, "y"),
    "T2w sagittal": ("/plane", T2W, "x"),
    "sCT axial, float32": ("/plane", SCT, "z"),
    "sCT axial, int16 with a scale": ("/plane", SCT | {"values": "int16"}, "z"),
    "dose axial, float32": ("/plane", DOSE, "z"),
    "dose axial, int16 with a scale, half": (
        "/plane",
        DOSE | {"values": "int16", "stride": 2},
        "z",
    ),
    "contours axial": ("/contours", {}, "z"),
    "contours coronal": ("/contours", {}, "y"),
    "contours sagittal": ("/contours", {}, "x"),
    "isodoses axial, four levels": ("/isodoses", {}, "z"),
    "isodoses axial, planning grid": ("/isodoses", {"grid": "dose"}, "z"),
}


def main() -> None:
    """Measure and write benchmarks/results/planes.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard", help="full size")
    parser.add_argument("--people", type=int, default=20, help="who scroll at a time")
    parser.add_argument("--slices", type=int, default=30, help="each of them looks at")
    options = parser.parse_args()
    figures = {
        "one person": measure_kinds(options.dataset),
        "points": measure_points(options.dataset),
        "people": measure_people(options.dataset, options.people, options.slices),
    }
    print(json.dumps(figures, indent=1))
    print(write_results("planes", figures))


@dataclass(frozen=True)
class Client:
    """A client of one patient, which accepts a coding."""

    running: Running
    http: httpx.Client
    row: Mapping[str, Any]

    def get(self, path: str = "", **params: Any) -> int:
        """Return the bytes of an answer's body, as they come over the line."""
        with self.http.stream("GET", path, params=params) as answer:
            size = sum(len(chunk) for chunk in answer.iter_raw())
        answer.raise_for_status()
        return size

    def processor_ms(self) -> float:
        """Return the processor time of the server so far: of all its threads."""
        tasks = Path(f"/proc/{self.running.process.pid}/task").iterdir()
        return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e6

    def peak_mb(self) -> float:
        """Return the most memory that the server has had resident."""
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1000


@contextmanager
def client(dataset: Path, coding: str = "zstd", **more: Any) -> Iterator[Client]:
    """Serve a dataset anew, and give a client of its first patient, which is open."""
    row = lp.open_cohort(dataset)[0].row
    with tempfile.TemporaryDirectory() as folder, service(dataset, Path(folder), **more) as running:
        headers = running.headers | {"Accept-Encoding": coding}
        with httpx.Client(base_url=running.url, headers=headers, timeout=60) as http:
            base = f"/api/v1/datasets/{NAME}/patients/{row['patient_id']}"
            http.base_url = http.base_url.join(base)
            yield Client(running, http, row)


def measure_kinds(dataset: Path) -> dict[str, Any]:
    """Bytes and processor time of each kind of answer, cold and warm, in the middle of the body."""
    found = {}
    for name, (path, params, axis) in KINDS.items():
        with client(dataset) as one:
            # What is read once a patient is not counted: its metadata and table rows.
            one.get("/contours", n=0, structures="PenileBulb")
            depth = one.row[f"{params.get('grid', 'mri')}_shape"]["zyx".index(axis)]
            cold, warm, sizes = [], [], []
            for n in range(depth // 4, 3 * depth // 4, max(8, depth // 8)):
                for plane, times in ((n, cold), (n + 1, warm), (n + 2, warm)):
                    before = one.processor_ms()
                    sizes.append(one.get(path, **params, axis=axis, n=plane))
                    times.append(one.processor_ms() - before)
            found[name] = {
                "kb": round(statistics.median(sizes) / 1000, 1),
                "cold_ms": round(statistics.median(cold), 1),
                "warm_ms": round(statistics.median(warm), 1),
            }
    return found | {"T2w axial, gzip": gzipped(dataset)}


def gzipped(dataset: Path) -> dict[str, Any]:
    """The same for a client without zstd."""
    with client(dataset, "gzip") as one:
        sizes = [one.get("/plane", **T2W, axis="z", n=n) for n in (44, 45, 46)]
        before = one.processor_ms()
        sizes.append(one.get("/plane", **T2W, axis="z", n=47))
        return {
            "kb": round(statistics.median(sizes) / 1000, 1),
            "warm_ms": round(one.processor_ms() - before, 1),
        }


def measure_points(dataset: Path) -> dict[str, Any]:
    """A patient's description, values at a point, dose-volume curves: bytes and processor time."""
    found = {}
    with client(dataset) as one:
        for name, path, params in (
            ("patient, first", "", {}),
            ("patient, again", "", {}),
            ("values, first", "/values", {"x": 0, "y": 0, "z": 10}),
            ("values, again", "/values", {"x": 0.5, "y": 0, "z": 10}),
            ("dose-volume curves of all structures, sCT grid", "/dvh", {}),
            ("thumbnail", "/thumbnail", {}),
        ):
            before = one.processor_ms()
            size = one.get(path or str(one.http.base_url).rstrip("/"), **params)
            took = one.processor_ms() - before
            found[name] = {"kb": round(size / 1000, 2), "ms": round(took, 1)}
    return found


def measure_people(dataset: Path, people: int, slices: int) -> dict[str, Any]:
    """People who scroll at a time, each through a patient along an axis: wall time and memory."""
    seconds: list[float] = []
    with client(dataset) as one:
        threads = [
            threading.Thread(target=_scroll, args=(one, seed, slices, seconds))
            for seed in range(people)
        ]
        started, before = time.perf_counter(), one.processor_ms()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - started
        return {
            "people": people,
            "answers": len(seconds),
            "answers_a_second": round(len(seconds) / took, 1),
            "processor_ms_an_answer": round((one.processor_ms() - before) / len(seconds), 1),
            "p50_s": round(statistics.median(seconds), 3),
            "p95_s": round(statistics.quantiles(seconds, n=20)[-1], 3),
            "server_peak_mb": round(one.peak_mb()),
        }


def _scroll(one: Client, seed: int, slices: int, seconds: list[float]) -> None:
    """Show T2w at half resolution and contours, slice after slice."""
    rng = random.Random(seed)
    axis = rng.choice("zyx")
    n = rng.randrange(10, 40) * (1 if axis == "z" else 10)
    with httpx.Client(headers=one.http.headers, timeout=120, base_url=one.http.base_url) as http:
        mine = Client(one.running, http, one.row)
        for step in range(slices):
            for path, params in (("/plane", T2W | {"stride": 2}), ("/contours", {})):
                began = time.perf_counter()
                mine.get(path, **params, axis=axis, n=n + step)
                seconds.append(time.perf_counter() - began)


if __name__ == "__main__":
    main()
