"""Many workers and many patients: scaling, workers that go and come, and what 50,000 would cost.

Patients are converted at full size on a dask scheduler with worker processes of their own. What
grows with the number of patients is measured with stand-ins: source files without contents, tasks
without voxels, stores of a root metadata file alone, each a copy of a real one's, as many of them
extended as in LUND-PROBE.

    python -m benchmarks.cluster --work /tmp/lundprobe-bench --workers 1,2 --patients 467,50000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from distributed import Client

from benchmarks.conversion import floor, open_stores
from benchmarks.record import write_results
from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.conversion.arrays.patient import PatientResult
from lundprobe_zarr.conversion.run.cluster import local_client
from lundprobe_zarr.conversion.run.run import _results
from lundprobe_zarr.conversion.source.inventory import PatientSource, SourceEntry, take_inventory
from lundprobe_zarr.conversion.tables.fragments import save_fragments
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.tables import COHORT_FILE, MEASURED
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.files import expected_files

#: Patients of a source tree that is made of empty files; of more, the file system is measured.
_MOST_FOLDERS = 5000
#: Patients of LUND-PROBE, and those of them who are extended.
_PATIENTS, _EXTENDED = 467, 35
_PREDICATE = "protocol = 'newAcq' AND dose_max_gy > 40 AND Rectum.volume_cc > 10"


def main() -> None:
    """Measure; write results/cluster.json of real patients, of stand-ins a file for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--source", type=Path, help="full-size source [default: made in WORK]")
    parser.add_argument("--source-patients", type=int, default=8)
    parser.add_argument("--workers", type=_numbers, default=[1, 2], help="e.g. 1,2,4,8")
    parser.add_argument("--patients", type=_numbers, default=[467], help="e.g. 467,50000")
    parts = [*REAL, *MANY]
    parser.add_argument("--only", type=_names, default=parts, help=", ".join(parts))
    options = parser.parse_args()
    if options.source is None:
        options.source = options.work / f"source-{options.source_patients}-0"
        if not options.source.exists():
            count, workers = options.source_patients, max(options.workers)
            write_phantom(options.source, patients=count, size="full", workers=workers)
    figures = {name: REAL[name](options) for name in REAL if name in options.only}
    if figures:
        report(figures, "")
    for name in MANY:
        if name in options.only:
            report(MANY[name](options), f"_{name}")


def report(figures: dict[str, Any], part: str) -> None:
    """Write and print figures."""
    print(write_results("cluster", figures, part))
    print(json.dumps(figures, indent=2))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _names(text: str) -> list[str]:
    return text.split(",")


# Real patients on a real cluster


class Cluster:
    """A scheduler and worker processes of one thread each, started by dask's own commands."""

    def __init__(self, folder: Path, workers: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file)
        while not (file.exists() and file.stat().st_size):
            time.sleep(0.05)
        self.address: str = json.loads(file.read_text())["address"]
        self.workers = [self.add() for _ in range(workers)]
        with Client(self.address) as client:
            client.wait_for_workers(workers)

    def add(self) -> subprocess.Popen[bytes]:
        """One more worker."""
        common = ("--nthreads", "1", "--no-nanny", "--local-directory", self._folder)
        return self._start("worker", self.address, *common)

    def _start(self, kind: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]
        with (self._folder / f"{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *map(str, arguments)], stdout=log, stderr=log, env=environment()
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    """That of processes: modules of this checkout, and malloc as dask's nannies set it."""
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": root, "MALLOC_TRIM_THRESHOLD_": "65536"}


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """A cluster that ends."""
    started = Cluster(folder, workers)
    try:
        yield started
    finally:
        started.close()


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the command by number of workers, all of them there when it starts.

    The floor, which decodes and encodes in as many processes and writes nothing, shows how much
    faster more of this machine's cores are at all: they share memory, caches and clock.
    """
    seconds, least = {}, min(options.workers)
    for workers in options.workers:
        with cluster(options.work / "cluster", workers) as there:
            seconds[workers] = converted(options, there, lambda process, out: None)
    stores = open_stores(options.work / "converted")
    floors = {n: floor(options.source, stores, n) for n in options.workers}
    return {
        "source_mb": round(take_inventory(options.source).bytes / 1e6),
        "source_patients": len(take_inventory(options.source).patients),
        "seconds": {n: round(s, 1) for n, s in seconds.items()},
        "times_as_fast": {n: round(seconds[least] / s, 2) for n, s in seconds.items()},
        "floor_seconds": {n: round(s, 1) for n, s in floors.items()},
        "floor_times_as_fast": {n: round(floors[least] / s, 2) for n, s in floors.items()},
    }


def coming_and_going(options: argparse.Namespace) -> dict[str, Any]:
    """Half of the workers are killed when they have begun, and as many added: is it the same?"""
    workers = max(options.workers)

    def disturb(process: subprocess.Popen[bytes], out: Path) -> None:
        while process.poll() is None and len(list(out.glob("patients/*.zarr"))) < 1:
            time.sleep(0.05)
        for worker in there.workers[: max(1, workers // 2)]:
            worker.kill()
            there.add()

    content = content_of(options.work / "converted")
    with cluster(options.work / "cluster", workers) as there:
        seconds = converted(options, there, disturb)
    found = validate(Location(options.work / "converted"), workers=workers)
    return {
        "workers": workers,
        "killed_and_added": max(1, workers // 2),
        "seconds": round(seconds, 1),
        "same_content": content == content_of(options.work / "converted"),
        "problems": len(found.problems),
    }


def converted(
    options: argparse.Namespace,
    there: Cluster,
    meanwhile: Callable[[subprocess.Popen[bytes], Path], None],
) -> float:
    """Seconds that the command takes on a cluster, into WORK/converted."""
    out = options.work / "converted"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "lundprobe_zarr", "convert", str(options.source), str(out)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--scheduler", there.address], stdout=subprocess.DEVNULL, env=environment()
    ) as process:
        meanwhile(process, out)
    if process.returncode:
        raise SystemExit(f"the conversion ended with {process.returncode}")
    return time.perf_counter() - started


def content_of(dataset: Path) -> str:
    """The content hash of a dataset."""
    return str(json.loads((dataset / "lundprobe.json").read_text())["content"]["sha256"])


# Stand-ins for many patients


def id_of(number: int) -> str:
    """Id of the patient of that number."""
    return f"newAcq_{hashlib.sha256(str(number).encode()).hexdigest()[:16]}"


def alone(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What `measure` gives in a fresh process, with the most memory that took."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_alone, measure, arguments).result()


def _alone(measure: Callable[..., dict[str, Any]], arguments: Sequence[Any]) -> dict[str, Any]:
    before = psutil.Process().memory_info().rss
    started, busy = time.perf_counter(), time.process_time()
    found = measure(*arguments)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    own = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
        "peak_mib": round(peak / 2**20),
    }
    return own | {"peak_beyond_start_mib": round((peak - before) / 2**20)} | found


def tasks(options: argparse.Namespace) -> dict[str, Any]:
    """The run loop with tasks that do nothing but report: what each patient costs beside it."""
    return {str(n): alone(_tasks, n, max(options.workers)) for n in options.patients}


def _tasks(patients: int, workers: int) -> dict[str, Any]:
    everyone = [_source(n) for n in range(patients)]
    with local_client(workers, patients) as client:
        started = time.perf_counter()
        done = {r.patient_id for r in _results(client, stand_in, everyone)}
        seconds = time.perf_counter() - started
    if len(done) != patients:
        raise SystemExit(f"{len(done)} of {patients} patients came back")
    return {
        "run_loop_seconds": round(seconds, 2),
        "ms_a_patient": round(1e3 * seconds / patients, 2),
    }


def _source(number: int) -> PatientSource:
    folder = f"basePart/{id_of(number)}"
    files = expected_files("base").items()
    entries = tuple(
        SourceEntry(path, record, Path(f"/source/{folder}"), 10**6, number)
        for path, record in files
    )
    return PatientSource(id_of(number), "base", folder, entries, (), (), (), None, None)


def stand_in(patient: PatientSource) -> PatientResult:
    """A conversion that does nothing."""
    return PatientResult(patient.patient_id, "converted", patient.bytes)


def inventory(options: argparse.Namespace) -> dict[str, Any]:
    """The inventory of trees of real folders, files empty."""
    figures = {}
    for patients in sorted({min(n, _MOST_FOLDERS) for n in options.patients}):
        root = options.work / f"tree-{patients}"
        if not root.exists():
            _write_tree(root, patients)
        figures[str(patients)] = alone(_inventory, root)
    return figures


def _write_tree(root: Path, patients: int) -> None:
    files = expected_files("base")
    for number in range(patients):
        for file in files:
            path = root / "basePart" / id_of(number) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _inventory(root: Path) -> dict[str, Any]:
    found = take_inventory(root)
    return {"patients": len(found.patients), "files": sum(len(p.entries) for p in found.patients)}


def publishing(options: argparse.Namespace) -> dict[str, Any]:
    """`finalise` of stand-in stores; then a cohort of them opened and chosen from."""
    figures = {}
    for patients in options.patients:
        dataset = options.work / f"stores-{patients}"
        if not dataset.exists():
            _write_stores(options.work / "converted", dataset, patients, max(options.workers))
        figures[str(patients)] = {
            "finalise": alone(_finalise, dataset),
            "open_cohort": alone(_open, dataset),
            "choose": alone(_choose, dataset),
        }
    return figures


def _write_stores(like: Path, dataset: Path, patients: int, workers: int) -> None:
    table = pq.read_table(like / COHORT_FILE, columns=["part", "store"]).to_pylist()
    roots = {row["part"]: like / row["store"] for row in table}
    context = multiprocessing.get_context("spawn")
    share = 500
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        shares = [range(n, min(n + share, patients)) for n in range(0, patients, share)]
        list(pool.map(partial(_write_share, roots, dataset), shares))


def _write_share(like: Mapping[str, Path], dataset: Path, numbers: Sequence[int]) -> None:
    """Stand-ins of these numbers for patients whose stores are those `like` them, by part."""
    extended = [n for n in numbers if n % _PATIENTS < _EXTENDED]
    _write_copies(like["extended"], dataset, extended)
    _write_copies(like["base"], dataset, [n for n in numbers if n not in extended])


def _write_copies(like: Path, dataset: Path, numbers: Sequence[int]) -> None:
    name = like.name.removesuffix(".zarr")
    text = (like / "zarr.json").read_text()
    notes = like.parents[1] / ".conversion"
    tables = {
        table: pq.read_table(notes / table / f"{name}.parquet").to_pylist() for table in MEASURED
    }
    for number in numbers:
        patient = id_of(number)
        document = json.loads(text.replace(name, patient).replace('"oldAcq"', '"newAcq"'))
        add_checksum(document, document["attributes"])
        root = json.dumps(document).encode()
        store = dataset / "patients" / f"{patient}.zarr"
        store.mkdir(parents=True)
        (store / "zarr.json").write_bytes(root)
        rows = {t: [{**row, "patient_id": patient} for row in r] for t, r in tables.items()}
        save_fragments(Location(dataset), patient, hashlib.sha256(root).hexdigest(), rows)


def _finalise(dataset: Path) -> dict[str, Any]:
    published = finalise(dataset)
    size = sum(f.stat().st_size for f in (dataset / "metadata").rglob("*.parquet"))
    return {
        "patients": sum(published.manifest.patients.values()),
        "tables_mb": round(size / 1e6, 1),
    }


def _open(dataset: Path) -> dict[str, Any]:
    return {"patients": len(open_cohort(dataset))}


def _choose(dataset: Path) -> dict[str, Any]:
    return {"chosen": len(open_cohort(dataset).where(_PREDICATE))}


_Part = Callable[[argparse.Namespace], dict[str, Any]]
#: What is measured, in this order: later ones use what earlier ones wrote.
REAL: dict[str, _Part] = {"scaling": scaling, "coming_and_going": coming_and_going}
MANY: dict[str, _Part] = {
    "tasks": tasks,
    "inventory": inventory,
    "publishing": publishing,
}

if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
